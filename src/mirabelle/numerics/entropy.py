"""How many bits integers take under an adaptive model of a matrix, with a gradient for the numbers before the rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 127  # the largest level that has a cost of its own; larger ones cost as much
_PRIOR, _SPREAD, _TAIL = 0.5, 1.5, 0.01  # level ±k counts as seen 0.5 · exp(−(k − 1) / 1.5) + 0.01 / k² times before any was
_FINEST, _COARSEST, _HALVINGS = 100.0, 8.0, 24  # steps between 1/100 and 8 root mean squares
_SEEN = 2.0  # zeros and others that each row and each column counts as seen, at the density of the matrix


@dataclass(frozen=True)
class LevelModel:
    """The costs of the levels of a matrix, in bits.

    A level is 0 with a probability that depends on the density of its row and of its column,
    p(≠ 0) = σ(logit d_row + logit d_column − logit d); its magnitude has the frequencies of the matrix, and its sign one bit.

    Args:
        magnitude: cost of the magnitude and sign of each level −127 … 127, 0 for level 0, (255,).
        falling: the same where half of the frequency of a magnitude is that of a geometric distribution with the same mean, so
            that a smaller magnitude is cheaper even if it is not more frequent yet.
        logit: of p(≠ 0), broadcastable to (rows, columns).
    """

    magnitude: Tensor
    falling: Tensor
    logit: Tensor

    @torch.no_grad()
    def bits(self, levels: Tensor) -> Tensor:
        """The bits that integers take, as a scalar: Σ −log₂ p(level)."""
        levels = levels.float().clamp(-MOST, MOST)
        counts = torch.bincount((levels + MOST).long().flatten(), minlength=len(self.magnitude)).float()
        # −log₂ p(0) everywhere, and logit p(≠ 0) less in each place that is not 0.
        places = F.softplus(self.logit).expand_as(levels).sum() - (self.logit * (levels != 0)).sum()
        return places / math.log(2) + counts @ self.magnitude

    @torch.no_grad()
    def slopes(self, numbers: Tensor) -> Tensor:
        """For each number, the falling cost of the next higher integer minus that of the next lower one, in bits.

        Numbers beyond ±127, where all levels cost the same, have none.

        Args:
            numbers: (rows, columns).
        """
        place = numbers.float().clamp(-MOST, MOST - 1).floor_().add_(MOST).long()
        slope = self.falling.diff()[place]
        # From −1 to 0 the cost of a place that is not 0 is saved; from 0 to 1 it is added.
        slope -= ((place == MOST).float() - (place == MOST - 1).float()) * (self.logit / math.log(2))
        slope *= numbers.abs() < MOST
        return slope.to(numbers.dtype)


@torch.no_grad()
def level_model(levels: Tensor) -> LevelModel:
    """The model that fits the levels of a matrix.

    Args:
        levels: integers in floating point, (rows, columns).
    """
    levels = levels.float().clamp(-MOST, MOST)
    counts = torch.bincount(levels.abs().long().flatten(), minlength=MOST + 1).float()
    each = torch.arange(1, MOST + 1, device=levels.device)
    seen = counts[1:] + _PRIOR * torch.exp(-(each - 1) / _SPREAD) + _TAIL / each**2
    share = seen / seen.sum()
    ratio = 1 - 1 / (share * each).sum()
    geometric = (1 - ratio) * ratio ** (each - 1)
    present = (levels != 0).float()
    density = (present.sum() + 0.5) / (present.numel() + 1)
    logit = torch.logit(density).reshape(1, 1)
    for axis in (0, 1):
        if present.shape[1 - axis] > 1 and present.shape[axis] > 1:
            dense = (present.sum(axis, keepdim=True) + _SEEN * density) / (present.shape[axis] + _SEEN)
            logit = logit + torch.logit(dense) - torch.logit(density)
    return LevelModel(_both_signs(share), _both_signs((share + geometric) / 2), logit)


def first_step(values: Tensor, bits: float) -> float:
    """The step for which the levels round(v / s) of the values that are not 0 have about an entropy, in bits.

    Args:
        values: any shape.
        bits: > 0; if the values have too few kinds, the result is a hundredth of their root mean square.
    """
    kept = values.detach()[values.detach() != 0].float()
    if not kept.numel():
        return 1.0
    size = float(kept.double().square().mean().sqrt())
    low, high = math.log(size / _FINEST), math.log(size * _COARSEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        levels = (kept / math.exp(middle)).round().clamp(-MOST, MOST)
        counts = torch.bincount(levels.long() + MOST).float()
        shares = counts[counts > 0] / kept.numel()
        low, high = (middle, high) if float(-(shares * shares.log2()).sum()) > bits else (low, middle)
    return math.exp(high)


def _both_signs(share: Tensor) -> Tensor:
    """The costs of levels −n … n from the shares of the magnitudes 1 … n."""
    cost = 1 - torch.log2(share)
    return torch.cat([cost.flip(0), cost.new_zeros(1), cost])
