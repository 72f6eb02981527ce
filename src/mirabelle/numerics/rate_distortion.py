"""Round the weights of a layer so that the change of its outputs and the bits of its levels are small together.

With a step s, U the factor of H⁻¹ = Uᵀ U, H the moments of the inputs, and columns changed one after the other as in GPTQ
(`numerics.compensation`), a weight w becomes the level k with the least

    (w / s − k)² / U[j, j]² + λ · bits(k),

where bits(k) is the cost of a level under the model of `numerics.entropy`, and λ = 0.05 · mean(1 / U[j, j]²). At high rates a
bit less costs an error of 2 ln 2 / 12 = 0.12 · mean(1 / U²); half of this was better for the outputs of whole networks.

Levels chosen like this make outputs smaller on average, and over many layers these losses multiply. The step is therefore
multiplied by ⟨W, W⟩ / ⟨W, s k⟩, with ⟨A, B⟩ = tr(A H Bᵀ), so that the outputs have the right size again. On ResNet-20 with 2
bits per weight this halved the change of the outputs.

Source: Frantar et al. 2022, arXiv:2210.17323 (compensation); Conzelmann, Bamler 2025, arXiv:2505.18758 (bits in the rounding).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mirabelle.numerics.compensation import compensated, inverse_factor
from mirabelle.numerics.entropy import MOST, LevelModel, level_model

_MOST_SCALED = 1.1  # by which a step is multiplied at the most: at less than a bit for each weight, outputs stay smaller
_ROWS = 256  # of a weight whose inputs do not count, at once
_PRESSURE = 0.05  # of a bit, as a share of the mean of 1 / U²
_PASSES = 2  # the model of the levels is fitted to the nearest ones, and then to those of the pass before
_BLOCK = 128


@dataclass(frozen=True)
class FittedLevels:
    """The levels of the weight of a layer.

    Args:
        levels: int8, (groups, rows, columns).
        start: the step by which the levels were found.
        step: the weight is about step · levels.
        noise_step: a step for numbers that are added to outputs, whose rounding makes no more noise than that of the weight.
        error: mean squared error of the outputs, summed over the rows.
        power: mean square of the outputs, summed over the rows.
        bits: of the levels.
    """

    levels: Tensor
    start: float
    step: float
    noise_step: float
    error: float
    power: float
    bits: float

    @property
    def values(self) -> Tensor:
        """The weight that the levels stand for, (groups, rows, columns), in float32."""
        return self.levels.float() * self.step


class Moment:
    """Second moments of the inputs of a matrix, and their factor; without moments, each weight counts the same.

    Args:
        matrix: H, (columns, columns); None for the identity.
        damping: share of the mean of the diagonal that is added to it, > 0.
    """

    def __init__(self, matrix: Tensor | None, damping: float) -> None:
        self.matrix = matrix
        self.factor = None if matrix is None else inverse_factor(matrix, damping)

    def power(self, left: Tensor, right: Tensor) -> float:
        """tr(A H Bᵀ)."""
        return float(((left if self.matrix is None else left @ self.matrix) * right).sum())

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the moments; None without any."""
        return None if self.matrix is None else self.matrix.dtype

    @property
    def precision(self) -> float:
        """The mean of 1 / U[j, j]²."""
        return 1.0 if self.factor is None else float(self.factor.diagonal().square().reciprocal().mean())


class LevelRounding:
    """The rule by which columns become levels.

    Args:
        step: s.
        pressure: λ.
        model: of the costs of levels.
        kept: (rows, columns), False for weights that stay 0; None for none.
        shape: of the matrix.
    """

    block: int = _BLOCK

    def __init__(self, step: float, pressure: float, model: LevelModel, kept: Tensor | None, shape: torch.Size) -> None:
        self._step, self._pressure, self._kept = step, pressure, kept
        self._magnitude = pressure * model.magnitude
        self._magnitude[MOST] = math.inf  # level 0 has a cost of its own
        self._of_zero = pressure * (F.softplus(model.logit) / math.log(2)).expand(shape)
        self._of_others = pressure * (F.softplus(-model.logit) / math.log(2)).expand(shape)
        self._first, self._spread = 0, torch.ones(0)
        self.levels = torch.zeros(shape[::-1], dtype=torch.int8)

    def begin(self, first: int, rest: Tensor, spread: Tensor) -> None:
        del rest
        self._first, self._spread = first, spread

    def change(self, position: int, column: Tensor) -> Tensor:
        precision = 1 / float(self._spread[position - self._first]) ** 2
        levels = self.nearest(column / self._step, (slice(None), position), precision)
        self.levels[position] = levels.to(torch.int8)
        return levels * self._step

    def nearest(self, numbers: Tensor, place: tuple[slice, int] | tuple[slice, slice], precision: float) -> Tensor:
        """The best levels of some numbers w / s among the two neighbours, 0, and the next one towards 0.

        Args:
            numbers: of some rows, of one column or all.
            place: of the numbers in the matrix.
            precision: 1 / U[j, j]².
        """
        best, least = torch.zeros_like(numbers), numbers.square().mul_(precision).add_(self._of_zero[place])
        low = numbers.floor().clamp_(-MOST, MOST - 1)
        inner = torch.where(numbers < 0, (low + 2).clamp_(max=0), (low - 1).clamp_(min=0))
        for choice in (low, low + 1, inner):
            costs = (numbers - choice).square_().mul_(precision).add_(self._of_others[place])
            costs += self._magnitude[(choice + MOST).long()]
            better = costs < least
            best, least = torch.where(better, choice, best), torch.where(better, costs, least)
        return best if self._kept is None else torch.where(self._kept[place], best, 0.0)


def fitted_levels(weight: Tensor, moments: Sequence[Moment], step: float, *, keeps_zeros: bool = False) -> FittedLevels:
    """The levels of the weight of a layer for a step.

    Args:
        weight: (groups, rows, columns); a layer that is no grouped convolution has one group.
        moments: of the inputs of each group.
        step: above 0.
        keeps_zeros: whether zeros stay zero.

    Example:
        >>> torch.manual_seed(0) and None
        >>> found = fitted_levels(torch.randn(1, 64, 64), [Moment(None, 0.01)], step=0.5)
        >>> found.levels.dtype, 2.4 < found.bits / 4096 < 3.1
        (torch.int8, True)
    """
    levels = (weight / step).round().clamp(-MOST, MOST)
    precision = sum(moment.precision for moment in moments) / len(moments)
    for _ in range(_PASSES):
        models = _of_groups(level_model(levels.flatten(0, 1)), weight.shape)
        found = []
        for own, moment, model in zip(weight, moments, models, strict=True):
            rule = LevelRounding(step, _PRESSURE * precision, model, own != 0 if keeps_zeros else None, own.shape)
            if moment.factor is None:
                parts = [slice(first, first + _ROWS) for first in range(0, len(own), _ROWS)]
                found.append(torch.cat([rule.nearest(own[rows] / step, (rows, slice(None)), 1.0) for rows in parts]))
            else:
                compensated(own, moment.factor, rule)
                found.append(rule.levels.t().to(weight.dtype))
        levels = torch.stack(found)
    power = sum(moment.power(own, own) for own, moment in zip(weight, moments, strict=True))
    kept = step * sum(moment.power(own, part) for own, part, moment in zip(weight, levels, moments, strict=True))
    scaled = step * min(power / kept, _MOST_SCALED) if kept > 0 else step
    apart = weight - scaled * levels
    error = sum(moment.power(own, own) for own, moment in zip(apart, moments, strict=True))
    rows = weight.shape[0] * weight.shape[1]
    return FittedLevels(
        levels.to(torch.int8),
        step,
        scaled,
        min(step * math.sqrt(precision), math.sqrt(12 * max(error, 0.0) / rows)),
        max(error, 0.0),
        power,
        float(level_model(levels.flatten(0, 1)).bits(levels.flatten(0, 1))),
    )


def _of_groups(model: LevelModel, shape: torch.Size) -> list[LevelModel]:
    """The part of a model of all rows for each group."""
    logit = model.logit.expand(shape[0] * shape[1], shape[2]).reshape(shape)
    return [replace(model, logit=part) for part in logit]
