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

    def applied(self, left: Tensor) -> Tensor:
        """A H."""
        return left if self.matrix is None else left @ self.matrix

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the moments; None without any."""
        return None if self.matrix is None else self.matrix.dtype

    @property
    def precision(self) -> float:
        """The mean of 1 / U[j, j]²."""
        return 1.0 if self.factor is None else float(self.factor.diagonal().square().reciprocal().mean())


class LevelRounding:
    """The rule by which columns become levels, of one matrix with several steps at once.

    Each step has rows of its own, one copy of the matrix below the other.

    Args:
        steps: s of each copy.
        pressure: λ.
        models: of the costs of levels, one for each copy.
        kept: (rows, columns), False for weights that stay 0; None for none.
        shape: of the matrix.
    """

    block: int = _BLOCK

    def __init__(
        self, steps: Sequence[float], pressure: float, models: Sequence[LevelModel], kept: Tensor | None, shape: torch.Size
    ) -> None:
        copies = torch.arange(len(steps)).repeat_interleave(shape[0])
        self._step, self._pressure = torch.tensor(steps, dtype=torch.float64)[copies], pressure
        self._kept = None if kept is None else kept.repeat(len(steps), 1)
        tables = pressure * torch.stack([model.magnitude for model in models])
        tables[:, MOST] = math.inf  # level 0 has a cost of its own
        self._magnitude, self._first_of = tables.flatten(), copies * tables.shape[1] + MOST
        logit = torch.cat([model.logit.expand(shape) for model in models])
        self._of_zero = pressure * (F.softplus(logit) / math.log(2))
        self._of_others = pressure * (F.softplus(-logit) / math.log(2))
        self._first, self._spread = 0, torch.ones(0)
        self.levels = torch.zeros(shape[1], len(copies), dtype=torch.int8)

    def steps(self, dtype: torch.dtype) -> Tensor:
        """s of each row."""
        return self._step.to(dtype)

    def begin(self, first: int, rest: Tensor, spread: Tensor) -> None:
        del rest
        self._first, self._spread = first, spread

    def change(self, position: int, column: Tensor) -> Tensor:
        precision = 1 / float(self._spread[position - self._first]) ** 2
        step = self.steps(column.dtype)
        levels = self.nearest(column / step, (slice(None), position), precision)
        self.levels[position] = levels.to(torch.int8)
        return levels * step

    def nearest(self, numbers: Tensor, place: tuple[slice, int] | tuple[slice, slice], precision: float) -> Tensor:
        """The best levels of some numbers w / s among the two neighbours, 0, and the next one towards 0.

        Args:
            numbers: of some rows, of one column or all.
            place: of the numbers in the copies of the matrix.
            precision: 1 / U[j, j]².
        """
        best, least = torch.zeros_like(numbers), numbers.square().mul_(precision).add_(self._of_zero[place])
        low = numbers.floor().clamp_(-MOST, MOST - 1)
        inner = torch.where(numbers < 0, (low + 2).clamp_(max=0), (low - 1).clamp_(min=0))
        first = self._first_of[place[0]] if numbers.ndim == 1 else self._first_of[place[0], None]
        for choice in (low, low + 1, inner):
            costs = (numbers - choice).square_().mul_(precision).add_(self._of_others[place])
            costs += self._magnitude[choice.long() + first]
            better = costs < least
            best, least = torch.where(better, choice, best), torch.where(better, costs, least)
        return best if self._kept is None else torch.where(self._kept[place], best, 0.0)


def fitted_levels(
    weight: Tensor, moments: Sequence[Moment], steps: Sequence[float], *, keeps_zeros: bool = False
) -> list[FittedLevels]:
    """The levels of the weight of a layer for some steps, which are tried together.

    Args:
        weight: (groups, rows, columns); a layer that is no grouped convolution has one group.
        moments: of the inputs of each group.
        steps: above 0.
        keeps_zeros: whether zeros stay zero.

    Example:
        >>> torch.manual_seed(0) and None
        >>> (found,) = fitted_levels(torch.randn(1, 64, 64), [Moment(None, 0.01)], steps=[0.5])
        >>> found.levels.dtype, 2.4 < found.bits / 4096 < 3.1
        (torch.int8, True)
    """
    of_steps = [(weight / step).round().clamp(-MOST, MOST) for step in steps]
    precision = sum(moment.precision for moment in moments) / len(moments)
    for _ in range(_PASSES):
        models = [_of_groups(level_model(levels.flatten(0, 1)), weight.shape) for levels in of_steps]
        found = []
        for own, moment, of_group in zip(weight, moments, zip(*models, strict=True), strict=True):
            rule = LevelRounding(steps, _PRESSURE * precision, of_group, own != 0 if keeps_zeros else None, own.shape)
            found.append(_levels(own, moment, rule, len(steps)).to(weight.dtype))
        of_steps = list(torch.stack(found, dim=1))
    applied = [moment.applied(own) for own, moment in zip(weight, moments, strict=True)]
    power = sum(float((of * own).sum()) for of, own in zip(applied, weight, strict=True))
    return [_scaled(weight, levels, step, moments, (applied, power)) for levels, step in zip(of_steps, steps, strict=True)]


def _levels(own: Tensor, moment: Moment, rule: LevelRounding, copies: int) -> Tensor:
    """The levels of a group, (copies, rows, columns)."""
    stacked = own.repeat(copies, 1)
    if moment.factor is not None:
        compensated(stacked, moment.factor, rule)
        return rule.levels.t().reshape(copies, *own.shape)
    step = rule.steps(stacked.dtype)[:, None]
    parts = [slice(first, first + _ROWS) for first in range(0, len(stacked), _ROWS)]
    levels = [rule.nearest(stacked[rows] / step[rows], (rows, slice(None)), 1.0) for rows in parts]
    return torch.cat(levels).reshape(copies, *own.shape)


def _scaled(
    weight: Tensor, levels: Tensor, step: float, moments: Sequence[Moment], own: tuple[Sequence[Tensor], float]
) -> FittedLevels:
    """Levels with the step that gives the outputs their size; `own` are W H of each group, and ⟨W, W⟩."""
    applied, power = own
    precision = sum(moment.precision for moment in moments) / len(moments)
    kept = step * sum(float((of * part).sum()) for of, part in zip(applied, levels, strict=True))
    scaled = step * min(power / kept, _MOST_SCALED) if kept > 0 else step
    apart = weight - scaled * levels
    error = sum(float((moment.applied(lost) * lost).sum()) for lost, moment in zip(apart, moments, strict=True))
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
