"""Second moments that add up over batches, and the least-squares fit that follows from them."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Second moments of rows x, or of rows x with rows y, over everything that was added.

        matrix:    Σ (x − m)(y − m')ᵀ / rows        (groups, columns of x, columns of y)
        diagonal:  Σ (x − m) · (y − m') / rows      (groups, columns)

    m and m' are the means of all rows where moments are centred, else 0; y is x where none is given. Centred parts are merged
    without taking a difference of large numbers: with n and k rows, d and d' the differences of their means,
    S = S₁ + S₂ + d d'ᵀ · n k / (n + k).

    Args:
        centred: about the means.
        diagonal: keep the diagonal alone.
        dtype: in which rows are multiplied and sums are kept; None leaves rows in their own, of 32 bits at least.

    Example:
        >>> moments = Moments(centred=True)
        >>> moments.add(torch.tensor([[[1.0], [2.0]]]))
        >>> moments.add(torch.tensor([[[6.0]]]))
        >>> moments.mean(), moments.means[0]  # Σ (x − 3)² / 3
        (tensor([[[4.6667]]], dtype=torch.float64), tensor([[[3.]]], dtype=torch.float64))

    Source: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance" (merging of parts).
    """

    def __init__(self, *, centred: bool, diagonal: bool = False, dtype: torch.dtype | None = torch.float64) -> None:
        self.rows = 0
        self._centred, self._diagonal, self._dtype = centred, diagonal, dtype
        self._sum: Tensor | None = None
        self._means: tuple[Tensor, Tensor] | None = None

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Take in rows: x of (groups, rows, columns), and y of as many rows or None for x itself."""
        if not x.shape[1]:
            return
        x = x.to(self._dtype or torch.promote_types(x.dtype, torch.float32))
        y = x if y is None else y.to(x.dtype)
        count, self.rows = x.shape[1], self.rows + x.shape[1]
        if not self._centred:
            self._include(self._products(x, y))
            return
        means = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
        left = x - means[0]
        self._include(self._products(left, left if y is x else y - means[1]))
        if self._means is None:
            self._means = means
            return
        apart = means[0] - self._means[0], means[1] - self._means[1]
        self._include(self._products(*apart) * (count * (self.rows - count) / self.rows))
        known = self._means
        self._means = known[0] + apart[0] * (count / self.rows), known[1] + apart[1] * (count / self.rows)

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """The means of x and of y, each (groups, 1, columns); only of centred moments to which rows were added."""
        assert self._means is not None, "asked for where there are rows, and moments are centred"
        return self._means

    def total(self) -> Tensor:
        """The sum over all rows, `rows` times the mean; at least one row was added."""
        assert self._sum is not None, "asked for where there are rows"
        return self._sum

    def mean(self) -> Tensor:
        """The moments; at least one row was added."""
        return self.total() / self.rows

    def _products(self, left: Tensor, right: Tensor) -> Tensor:
        return (left * right).sum(1) if self._diagonal else left.transpose(1, 2) @ right

    def _include(self, products: Tensor) -> None:
        self._sum = products if self._sum is None else self._sum.add_(products)


def damped(gram: Tensor, ridge: float) -> Tensor:
    """Second moments (groups, columns, columns) with `ridge` times the mean of each diagonal added to that diagonal.

    A diagonal of zeros gets ones, so that the result always has an inverse.
    """
    mean = gram.diagonal(dim1=1, dim2=2).mean(1)
    added = torch.where(mean > 0, ridge * mean, torch.ones_like(mean))
    return gram + added[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)


def least_squares(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """The coefficients B of min ‖X B − Y‖² / rows + λ ‖B‖², λ = ridge · mean of the diagonal of XᵀX / rows.

    Args:
        gram: XᵀX / rows, (groups, columns, columns).
        cross: XᵀY / rows, (groups, columns, outputs).
        ridge: above 0.

    Returns:
        (groups, columns, outputs).

    Example:
        >>> least_squares(torch.tensor([[[2.0]]]), torch.tensor([[[6.0]]]), ridge=0.5).round(decimals=4)
        tensor([[[2.]]])
    """
    return torch.cholesky_solve(cross, torch.linalg.cholesky(damped(gram, ridge)))
