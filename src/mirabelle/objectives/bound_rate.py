"""The rate of layers in training, bound to one model, and the control that finds its weight for a size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mirabelle.codecs.shortest import length_of_levels
from mirabelle.numerics.entropy import MOST, level_model
from mirabelle.task.goal import limit_of

if TYPE_CHECKING:
    from mirabelle.objectives.forward import Forward

_REACHED = 0.5  # share of a training after which a size is to be met
_FIRST = 0.1  # weight of the rate with which the control begins
_SPEED, _AT_ONCE = 0.02, 3.0  # of the control: the integral part, for each step, and the proportional part
_STEEPEST = 1.0  # the most that the logarithm of an exceeded size counts
_SAFELY = 0.98  # of the size is aimed at
_BETWEEN, _LEAST_STEPS = 0.025, 20  # after this share of a training and so many steps, levels are coded again
_BITS = 8


@runtime_checkable
class Rounds(Protocol):
    """A module that trains with rounded tensors."""

    def positions(self) -> Sequence[tuple[Tensor, Tensor]]:
        """Each parameter that is rounded, and it divided by its step as a matrix (outputs, inputs), with a gradient."""


class BoundRate(nn.Module):
    """The rate of some layers.

    With a size it has five buffers: the weight that it has found; the first size in bits; how many bits of a file the levels
    took for each bit of the estimate when they were last coded; the progress at which they are coded again, and the optimizer
    steps since. The estimate lacks what a decoder has to learn first, about a fifth of a file of 2 kB.

    Args:
        layers: they belong to the model, and are no part of this module.
        size: most bytes, or a share of those in float32.
    """

    weight: Tensor
    first: Tensor
    ratio: Tensor
    due: Tensor
    waited: Tensor

    def __init__(self, layers: Sequence[Rounds], size: str | float | None) -> None:
        super().__init__()
        self._layers = tuple(layers)
        with torch.no_grad():
            self._count = sum(numbers.numel() for numbers in self._positions())
        self._most = None if size is None else _BITS * limit_of("size", size, 4.0 * self._count)
        if size is not None:
            self.register_buffer("weight", torch.tensor(_FIRST, dtype=torch.float64))
            self.register_buffer("first", torch.zeros((), dtype=torch.float64))
            self.register_buffer("ratio", torch.ones((), dtype=torch.float64))
            self.register_buffer("due", torch.tensor(_BETWEEN, dtype=torch.float64))
            self.register_buffer("waited", torch.zeros((), dtype=torch.int64))

    def forward(self, forward: Forward) -> Tensor:
        parts, exact = [], []
        for numbers in self._positions():
            levels = numbers.detach().round()
            if not bool(levels.isfinite().all()):
                return numbers.sum() * math.nan  # the training tells that its loss is not finite
            model = level_model(levels)
            parts.append((numbers * model.slopes(numbers.detach())).sum())
            exact.append(model.bits(levels))
        slope, bits = torch.stack(parts).sum(), torch.stack(exact).sum()
        mean = (bits + slope - slope.detach()) / self._count  # the value of the levels, with the gradient of the numbers
        return mean if self._most is None else mean * self._controlled(float(bits), forward.progress)

    def _positions(self) -> Iterator[Tensor]:
        """Those of all parameters, each once: layers may share a weight."""
        seen: set[int] = set()
        for parameter, numbers in (pair for layer in self._layers for pair in layer.positions()):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield numbers

    def coded_bytes(self) -> float:
        """The bytes of the present levels in a file."""
        levels = [numbers.detach().round().clamp(-MOST, MOST).cpu().numpy() for numbers in self._positions()]
        return sum(map(length_of_levels, levels))

    @property
    def most_bytes(self) -> float | None:
        """The size that is not to be exceeded, in bytes; None if there is none."""
        return None if self._most is None else self._most / _BITS

    def _controlled(self, bits: float, progress: float) -> float:
        """The weight for this step, after a look at the present size."""
        assert self._most is not None, "there is a size to meet"
        self.waited.add_(1)
        if progress >= float(self.due) and int(self.waited) >= _LEAST_STEPS:
            self.waited.zero_()
            self.ratio.fill_(_BITS * self.coded_bytes() / max(bits, 1.0))
            self.due.fill_(progress + _BETWEEN)
        bits *= float(self.ratio)
        if not self.first:
            self.first.fill_(bits)
        share = min(1.0, progress / _REACHED)
        last = math.log(self._most * _SAFELY)
        aim = (1 - share) * max(math.log(max(float(self.first), 1.0)), last) + share * last
        excess = max(-_STEEPEST, min(_STEEPEST, math.log(max(bits, 1.0)) - aim))
        self.weight.mul_(math.exp(_SPEED * excess))
        return float(self.weight) * math.exp(_AT_ONCE * excess)
