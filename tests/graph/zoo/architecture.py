"""What an entry of the zoo is, and the arguments it is called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

Draw: TypeAlias = Callable[[torch.Generator], torch.Tensor]
Arguments: TypeAlias = tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Architecture:
    """A small network, and arguments whose sizes differ from one another and from every width."""

    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Arguments]


def floats(*shape: int) -> Draw:
    """Draws normal numbers of this shape."""
    return lambda generator: torch.randn(shape, generator=generator)


def integers(high: int, *shape: int) -> Draw:
    """Draws integers of this shape in [2, high); 0 and 1 are left to padding and to the start of a sequence."""
    return lambda generator: torch.randint(2, high, shape, generator=generator)


def arguments(*positional: Draw, **named: Draw) -> Callable[[], Arguments]:
    """The same arguments at every call, on the processor and in float32 or int64."""

    def drawn() -> Arguments:
        generator = torch.Generator().manual_seed(1)
        return tuple(draw(generator) for draw in positional), {name: draw(generator) for name, draw in named.items()}

    return drawn
