"""Random numbers from a seed, the same on every device, that leave the global generators as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_SEEDS_OF_NUMPY = 1 << 32


def generator_from(seed: int) -> torch.Generator:
    """A new generator on the CPU. Generators of other devices draw other numbers from the same seed.

    Example:
        >>> torch.equal(torch.rand(3, generator=generator_from(1)), torch.rand(3, generator=generator_from(1)))
        True
    """
    return torch.Generator().manual_seed(seed)


@contextmanager
def global_draws(seed: int | None = None) -> Iterator[None]:
    """A context in which draws from torch's global generator follow from `seed`; its state is restored at the end.

    It serves for code that draws from no other generator, such as dropout and layers that initialize themselves.

    Args:
        seed: None leaves the generator as it is at the beginning.

    Example:
        >>> with global_draws(0):
        ...     first = torch.rand(2)
        >>> with global_draws(0):
        ...     torch.equal(first, torch.rand(2))
        True
    """
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        yield


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
