"""Random numbers from a seed, the same on every device, that leave the global generators as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_SEEDS_OF_NUMPY = 1 << 32
_ACCELERATORS = ("cuda", "xpu", "mps")  # types of devices with a global generator of their own


def generator_from(seed: int) -> torch.Generator:
    """A new generator on the CPU. Generators of other devices draw other numbers from the same seed.

    Example:
        >>> torch.equal(torch.rand(3, generator=generator_from(1)), torch.rand(3, generator=generator_from(1)))
        True
    """
    return torch.Generator().manual_seed(seed)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's global generator on the CPU, and that of a device."""
    torch.default_generator.manual_seed(seed)
    if device.type in _ACCELERATORS:
        getattr(torch, device.type).manual_seed(seed)


@contextmanager
def global_draws(seed: int | None = None, device: torch.device | None = None) -> Iterator[None]:
    """A context in which draws from torch's global generators follow from `seed`; their states are restored at the end.

    It serves for code that draws from no other generator, such as dropout and layers that initialize themselves.

    Args:
        seed: None leaves the generators as they are at the beginning.
        device: whose generator is meant, besides that of the CPU.

    Example:
        >>> with global_draws(0):
        ...     first = torch.rand(2)
        >>> with global_draws(0):
        ...     torch.equal(first, torch.rand(2))
        True
    """
    library = getattr(torch, device.type) if device is not None and device.type in _ACCELERATORS else None
    before = None if library is None else library.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            seed_generators(seed, device or torch.device("cpu"))
        try:
            yield
        finally:
            if library is not None:
                library.set_rng_state(before)


@contextmanager
def all_global_draws(seed: int) -> Iterator[None]:
    """A context like `global_draws` for code of others, which may also draw from Python's `random` and from NumPy.

    Example:
        >>> with all_global_draws(0):
        ...     first = random.random(), np.random.rand()
        >>> with all_global_draws(0):
        ...     first == (random.random(), np.random.rand())
        True
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the code of others may use it)
    with global_draws(seed):
        random.seed(seed)
        np.random.seed(seed % _SEEDS_OF_NUMPY)  # noqa: NPY002 (the code of others may use it)
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002 (the code of others may use it)
