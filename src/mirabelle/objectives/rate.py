"""The rate of a model that is trained with rounded weights: how many bits they will take in a packed file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.objectives.objective import Term
from mirabelle.records.record import record
from mirabelle.task.goal import limit_of

if TYPE_CHECKING:
    from mirabelle.objectives.forward import Forward
    from mirabelle.task.batch import Batch
    from mirabelle.task.task import Task

_REACHED = 0.5  # share of a training after which a size is to be met
_FIRST = 0.1  # weight of the rate with which the control begins
_SPEED, _AT_ONCE = 0.02, 3.0  # of the control: the integral part, for each step, and the proportional part
_STEEPEST = 1.0  # the most that the logarithm of an exceeded size counts
_SAFELY = 0.98  # of the size is aimed at
_BITS = 8


@runtime_checkable
class Rounds(Protocol):
    """A module that trains with rounded tensors."""

    def positions(self) -> Sequence[Tensor]:
        """Each rounded tensor divided by its step, before the rounding, as a matrix (outputs, inputs), with a gradient."""


@record
class Rate(Term):
    """Rate: the mean bits of a weight, R = 1 / n · Σ_i −log₂ p(q_i), over the n numbers that the training rounds.

    q = round(w / s) are the levels of a tensor with the step s. p is the model that fits the present levels of the tensor: a
    weight is not 0 with a probability that depends on the density of its row and its column, and magnitudes have their
    frequencies (`numerics.entropy`). In the gradient, the cost of w / s is linear between two levels, so that weights move to
    the cheaper one; the steps get a gradient, too. Weights that are not worth their bits become zeros, rows and columns become
    empty, and few levels are left.

    It needs a training that rounds weights: `quantize.EntropyConstrained`, which adds the term, or `quantize.Aware`.

    Args:
        size: most bytes of the rounded numbers, "4 kB", or "5%" of these numbers in float32. The term then finds its weight: it
            grows while the estimated size is above a limit that falls from the first size to this one in half of the training,
            and shrinks while it is below. The weight that the objective gives is a factor; leave it at 1.

    Raises:
        UserError: E113 for a size that cannot be read; E112, when it is bound, if the model rounds no weights.

    Example:
        >>> 2.0 * Rate()
        Objective(terms=((2.0, Rate(size=None)),))

    Source: Oktay, Ballé, Singh, Shrivastava 2020, arXiv:1906.06624 (rate of weights in the loss); Wiedemann, Marban, Müller,
    Samek 2019, arXiv:1812.07520 (entropy constraint); the gradient of steps: Esser et al. 2020, arXiv:1902.08153.
    """

    size: str | float | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            limit_of("size", self.size, 1.0)

    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        del task, example
        layers = [module for module in model.modules() if isinstance(module, Rounds)]
        if not layers:
            message = "Rate needs a model whose weights are rounded in the training, and this one has none"
            raise UserError("E112", message, "use it with quantize.EntropyConstrained or quantize.Aware")
        return BoundRate(layers, self.size)


class BoundRate(nn.Module):
    """The rate of some layers. With a size it has two buffers: the weight that it has found, and the first size in bits.

    Args:
        layers: they belong to the model, and are no part of this module.
        size: most bytes, or a share of those in float32.
    """

    weight: Tensor
    first: Tensor

    def __init__(self, layers: Sequence[Rounds], size: str | float | None) -> None:
        super().__init__()
        self._layers = tuple(layers)
        with torch.no_grad():
            self._count = sum(numbers.numel() for layer in layers for numbers in layer.positions())
        self._most = None if size is None else _BITS * limit_of("size", size, 4.0 * self._count)
        if size is not None:
            self.register_buffer("weight", torch.tensor(_FIRST, dtype=torch.float64))
            self.register_buffer("first", torch.zeros((), dtype=torch.float64))

    def forward(self, forward: Forward) -> Tensor:
        from mirabelle.numerics.entropy import level_model

        parts, exact = [], []
        for layer in self._layers:
            for numbers in layer.positions():
                levels = numbers.detach().round()
                model = level_model(levels)
                parts.append(model.interpolated(numbers))
                exact.append(model.bits(levels))
        slope, bits = torch.stack(parts).sum(), torch.stack(exact).sum()
        mean = (bits + slope - slope.detach()) / self._count  # the value of the levels, with the gradient of the numbers
        return mean if self._most is None else mean * self._controlled(float(bits), forward.progress)

    def _controlled(self, bits: float, progress: float) -> float:
        """The weight for this step, after a look at the present size."""
        assert self._most is not None, "there is a size to meet"
        if not self.first:
            self.first.fill_(bits)
        share = min(1.0, progress / _REACHED)
        last = math.log(self._most * _SAFELY)
        aim = (1 - share) * max(math.log(max(float(self.first), 1.0)), last) + share * last
        excess = max(-_STEEPEST, min(_STEEPEST, math.log(max(bits, 1.0)) - aim))
        self.weight.mul_(math.exp(_SPEED * excess))
        return float(self.weight) * math.exp(_AT_ONCE * excess)
