"""Weights as integer codes with one scale for each group of neighbouring columns of a row: w = scale · code.

A code of 0 is a weight of 0, so zeros stay zeros. Without zero points, the codes of b bits are −2^(b−1) to 2^(b−1) − 1. With
them, each group has a range of 2^b codes of its own that contains 0: −2^(b−1) − z to 2^(b−1) − 1 − z, so that code + z is a
number of b bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_SMALLEST = 0.4  # of the range of a group, the smallest that clipping tries
_CANDIDATES = 24
_NUMBERS_AT_ONCE = 1 << 17  # of weights whose scales are searched together: they stay in a cache


@dataclass(frozen=True)
class Grid:
    """The codes of b bits that a group of weights may take.

    Args:
        bits: per weight.
        zero_points: whether each group has a zero point, so that its range need not be symmetric; for up to 7 bits.
        clipping: whether the range of a group is narrowed to the one with the smallest squared error.
    """

    bits: int
    zero_points: bool = False
    clipping: bool = True

    @property
    def low(self) -> int:
        """The smallest number of b bits; that of 8 bits leaves out −128, as the codes of other layers do."""
        return -(1 << self.bits - 1) + (0 if self.zero_points or self.bits < 8 else 1)  # noqa: PLR2004 (bits)

    @property
    def high(self) -> int:
        """The largest number of b bits."""
        return (1 << self.bits - 1) - 1

    def steps(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """The scale and the zero point of each group with the smallest squared error, of ranges from 0.4 to 1 of the widest.

        Scales are rounded to bfloat16, which takes two bytes. The scale of a group of zeros is 1.

        Args:
            groups: weights, (n, elements of a group).

        Returns:
            Scales and zero points, each (n, 1), in float32; without zero points the second are 0.

        Example:
            >>> Grid(bits=4).steps(torch.tensor([[7.0, -3.0]]))
            (tensor([[1.]]), tensor([[0.]]))
        """
        groups = groups.float()
        parts = [self._best(part) for part in torch.split(groups, max(1, _NUMBERS_AT_ONCE // groups.shape[1]))]
        return torch.cat([scale for scale, _ in parts]), torch.cat([zero for _, zero in parts])

    def _best(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        best_scale, best_zero = self._steps_of(groups, 1.0)
        if not self.clipping:
            return best_scale, best_zero
        best_error = self._error(groups, best_scale, best_zero)
        for fraction in torch.linspace(1.0, _SMALLEST, _CANDIDATES).tolist()[1:]:
            scale, zero = self._steps_of(groups, fraction)
            error = self._error(groups, scale, zero)
            better = error < best_error
            best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
            best_error = torch.where(better, error, best_error)
        return best_scale, best_zero

    def _error(self, groups: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """The squared error of each group, (n, 1)."""
        values = (groups / scale).round_().add_(zero).clamp_(self.low, self.high).sub_(zero).mul_(scale)
        return values.sub_(groups).square_().sum(1, keepdim=True)

    def codes(self, values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """The nearest codes, clamp(round(w / scale) + zero, low, high) − zero, as floats; scale and zero are broadcast."""
        return (torch.round(values / scale) + zero).clamp(self.low, self.high) - zero

    def _steps_of(self, groups: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
        """Scales and zero points for a fraction of the range of each group."""
        if self.zero_points:
            least, most = groups.amin(1, keepdim=True).clamp(max=0), groups.amax(1, keepdim=True).clamp(min=0)
            scale = _in_two_bytes((most - least) * fraction / (self.high - self.low))
            return scale, (self.low - torch.round(least * fraction / scale)).clamp(self.low, self.high)
        scale = _in_two_bytes(groups.abs().amax(1, keepdim=True) * fraction / self.high)
        return scale, torch.zeros_like(scale)


@dataclass(frozen=True)
class GroupCodes:
    """The codes of a matrix of weights: w = scale · code.

    Args:
        codes: int8, (rows, columns).
        scale: float32, (rows, groups); column j belongs to group j // group_size, and the last group may have fewer columns.
        zero_point: int8, (rows, groups); None if all are 0.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None


def by_column(of_groups: Tensor, columns: int, group_size: int) -> Tensor:
    """The value of each column's group: (rows, groups) -> (rows, columns).

    Example:
        >>> by_column(torch.tensor([[1, 2]]), columns=5, group_size=3)
        tensor([[1, 1, 1, 2, 2]])
    """
    return of_groups.repeat_interleave(group_size, dim=1)[:, :columns]


def nearest(weight: Tensor, group_size: int, grid: Grid) -> GroupCodes:
    """Round each weight to the nearest value of its group.

    Args:
        weight: (rows, columns).
        group_size: columns of a group.
        grid: of all groups.

    Example:
        >>> found = nearest(torch.tensor([[7.0, -3.2, 0.7, 0.1]]), 2, Grid(bits=4))
        >>> found.codes, found.scale.shape, found.zero_point
        (tensor([[ 7, -3,  7,  1]], dtype=torch.int8), torch.Size([1, 2]), None)
    """
    scale, zero = group_steps(weight, group_size, grid)
    columns = weight.shape[1]
    codes = grid.codes(weight.float(), by_column(scale, columns, group_size), by_column(zero, columns, group_size))
    return GroupCodes(codes.to(torch.int8), scale, zero.to(torch.int8) if grid.zero_points else None)


def group_steps(weight: Tensor, group_size: int, grid: Grid) -> tuple[Tensor, Tensor]:
    """The scales and zero points of all groups, each (rows, groups), in float32."""
    rows, columns = weight.shape
    groups = -(-columns // group_size)
    # A group that is not full is filled up with zeros, which every grid represents exactly.
    padded = functional.pad(weight.float(), (0, groups * group_size - columns)).reshape(-1, group_size)
    scale, zero = grid.steps(padded)
    return scale.reshape(rows, groups), zero.reshape(rows, groups)


def decoded(codes: Tensor, scale: Tensor, group_size: int) -> Tensor:
    """The weights that codes stand for, scale · code, in the dtype of the scale.

    Args:
        codes: int8, (rows, ...); the columns are all further axes, flattened.
        scale: (rows, groups).
        group_size: columns of a group.

    Example:
        >>> decoded(torch.tensor([[1, 2, 3]], dtype=torch.int8), torch.tensor([[0.5, 10.0]]), group_size=2)
        tensor([[ 0.5000,  1.0000, 30.0000]])
    """
    flat = codes.flatten(1)
    return (flat.to(scale.dtype) * by_column(scale, flat.shape[1], group_size)).reshape(codes.shape)


def _in_two_bytes(scale: Tensor) -> Tensor:
    """Scales as bfloat16 values, 1 for a range of zero width."""
    scale = scale.bfloat16().float()
    return torch.where(scale > 0, scale, torch.ones_like(scale))
