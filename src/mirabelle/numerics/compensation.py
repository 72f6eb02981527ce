"""Change the weights of a layer column by column, where the columns that follow make up for the error of each: GPTQ, SparseGPT.

Let H = E[x xᵀ], x the inputs of the layer, and U the upper triangular factor with H⁻¹ = Uᵀ U. Once column j of the weight W
is changed to q, the columns after it get the change that keeps the error of the outputs smallest (Optimal Brain Surgeon):

    W[:, j+1:] −= (W[:, j] − q) / U[j, j] · U[j, j+1:]

Columns are taken in blocks. Within a block, every change reaches the columns of the block at once; the columns after it get
the changes of the whole block in one matrix product.

Source: Frantar, Ashkboos, Hoefler, Alistarh 2022, arXiv:2210.17323 (algorithm 1); Frantar, Alistarh 2023, arXiv:2301.00774
(algorithm 1); Hassibi, Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon".
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mirabelle.numerics.group_codes import Grid, GroupCodes, group_steps
from mirabelle.numerics.masks import keep_but, keep_highest_of_each

_BLOCK = 128
_LARGEST_DAMPING = 1e3


class Rule(Protocol):
    """How columns change."""

    @property
    def block(self) -> int:
        """The number of columns of a block."""
        ...

    def begin(self, first: int, rest: Tensor, spread: Tensor) -> None:
        """Called before the columns of a block.

        Args:
            first: the position of the first column of the block.
            rest: the weights from this column on, as compensated so far, (rows, columns − first).
            spread: U[j, j] of these columns, (columns − first,); (w / spread)² / 2 is the cost of removing w.
        """
        ...

    def change(self, position: int, column: Tensor) -> Tensor:
        """The new values of the column at this position, (rows,)."""
        ...


def inverse_factor(moments: Tensor, damping: float) -> Tensor:
    """The upper triangular U with (H + λ I)⁻¹ = Uᵀ U, λ = damping · mean of the diagonal of H.

    If the moments are so nearly singular that rounding stops the factorization, λ is made ten times as large, and again. The λ
    of moments of zeros is 1.

    Args:
        moments: H, (columns, columns).
        damping: above 0.

    Example:
        >>> inverse_factor(torch.tensor([[4.0, 0.0], [0.0, 1.0]]).double(), damping=1e-12).diagonal().round(decimals=4)
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    mean = float(moments.diagonal().mean())
    while damping < _LARGEST_DAMPING:
        upper: Tensor
        damped = moments.clone()
        damped.diagonal().add_(damping * mean if mean > 0 else 1.0)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
        damping *= 10
    raise AssertionError("moments of finite numbers have a factor with enough damping")


def compensated(weight: Tensor, factor: Tensor, rule: Rule) -> Tensor:
    """The weight with all columns changed by a rule, each made up for by the columns after it.

    Args:
        weight: (rows, columns).
        factor: `inverse_factor` of the layer's inputs, (columns, columns).
        rule: how columns change.
    """
    by_column = weight.to(factor.dtype).t().clone(memory_format=torch.contiguous_format)  # each column together in memory
    columns, spread = len(by_column), factor.diagonal()
    first = 0
    while first < columns:
        last = min(first + rule.block, columns)
        rule.begin(first, by_column[first:].t(), spread[first:])
        errors = by_column.new_empty(last - first, by_column.shape[1])
        for position in range(first, last):
            column = by_column[position]
            changed = rule.change(position, column)
            error = torch.sub(column, changed, out=errors[position - first]).div_(spread[position])
            by_column[position] = changed
            by_column[position + 1 : last].addr_(factor[position, position + 1 : last], error, alpha=-1)
        by_column[last:].addmm_(factor[first:last, last:].t(), errors, alpha=-1)
        first = last
    return by_column.t().contiguous()


class Rounding:
    """GPTQ: columns are rounded to the codes of their groups.

    Args:
        weight: (rows, columns), in the order of the layer.
        group_size: columns of a group.
        grid: of all groups.
        order: (columns,), the column of the layer at each position; None for the order of the layer. With an order, the
            scales of all groups are those of the weights before any change; otherwise they follow the compensation.
        kept: (rows, columns), False for weights that stay 0; None for none.
    """

    def __init__(
        self, weight: Tensor, group_size: int, grid: Grid, order: Tensor | None = None, kept: Tensor | None = None
    ) -> None:
        self._group, self._grid, self._kept = group_size, grid, kept
        self._order = None if order is None else order.tolist()
        groups = -(-weight.shape[1] // group_size)
        self._scale = torch.ones(len(weight), groups, device=weight.device)
        self._zero = torch.zeros_like(self._scale)
        if order is not None:
            self._scale, self._zero = group_steps(weight, group_size, grid)
        self._codes = torch.zeros(weight.shape[::-1], dtype=torch.int8, device=weight.device)

    @property
    def block(self) -> int:
        return self._group if self._group <= _BLOCK or self._group % _BLOCK else _BLOCK

    def begin(self, first: int, rest: Tensor, spread: Tensor) -> None:
        del spread
        if self._order is None and first % self._group == 0:
            scale, zero = group_steps(rest[:, : self._group], self._group, self._grid)
            self._scale[:, first // self._group], self._zero[:, first // self._group] = scale[:, 0], zero[:, 0]

    def change(self, position: int, column: Tensor) -> Tensor:
        own = position if self._order is None else self._order[position]
        scale, zero = (of_groups[:, own // self._group].to(column.dtype) for of_groups in (self._scale, self._zero))
        codes = self._grid.codes(column, scale, zero)
        if self._kept is not None:
            codes = torch.where(self._kept[:, own], codes, 0.0)
        self._codes[own] = codes.to(torch.int8)
        return codes * scale

    def codes(self) -> GroupCodes:
        """The codes of the layer, once all columns have changed."""
        return GroupCodes(
            self._codes.t().contiguous(), self._scale, self._zero.to(torch.int8) if self._grid.zero_points else None
        )


class Removing:
    """SparseGPT: in each block, the weights that cost least, w² / U[j, j]², become zero, in equal shares of all blocks.

    Args:
        sparsity: fraction of the weights, in [0, 1).
        of_each: (kept, columns): that many weights of as many neighbouring columns of each row are kept, instead of a sparsity;
            (2, 4) for a pattern that hardware has kernels for.
    """

    def __init__(self, sparsity: float = 0.0, of_each: tuple[int, int] | None = None) -> None:
        self._sparsity, self._of_each = sparsity, of_each
        self._first, self._seen, self._removed = 0, 0, 0
        self._kept = torch.zeros(0)

    @property
    def block(self) -> int:
        return _BLOCK if self._of_each is None else self._of_each[1]

    def begin(self, first: int, rest: Tensor, spread: Tensor) -> None:
        block = rest[:, : self.block]
        costs = (block / spread[: self.block]).square()
        self._first, self._seen = first, self._seen + block.numel()
        if self._of_each is not None:
            self._kept = keep_highest_of_each(costs, *self._of_each)
            return
        due = int(self._sparsity * self._seen) - self._removed  # so that the shares of all blocks add up
        self._kept = keep_but(costs, due)
        self._removed += due

    def change(self, position: int, column: Tensor) -> Tensor:
        return torch.where(self._kept[:, position - self._first], column, 0.0)
