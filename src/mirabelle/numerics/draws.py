"""Random numbers from a seed, the same on every device, that leave torch's global generator as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
