"""Second moments accumulated over batches, and least squares from them."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Second moments of rows x, or of rows x and y, accumulated over batches.

        matrix:    Σ (x − m)(y − m')ᵀ / rows        (groups, columns of x, columns of y)
        diagonal:  Σ (x − m) · (y − m') / rows      (groups, columns)

    m and m' are the means of x and y if the moments are centred, otherwise 0. y is x if it is not given. Centred moments of two
    parts are merged without cancellation: with n and k rows, and differences d and d' of their means,
    S = S₁ + S₂ + d d'ᵀ · n k / (n + k).

    Args:
        centred: whether the means are subtracted.
        diagonal: whether only the diagonal is computed.
        dtype: dtype of products and sums; None keeps that of the rows, but at least float32.

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
        """Add rows.

        Args:
            x: (groups, rows, columns).
            y: (groups, rows, columns of y); None for x.
        """
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

    def home(self) -> None:
        """Bring the sums to the CPU, from the device of the rows."""
        self._sum = None if self._sum is None else self._sum.cpu()
        self._means = None if self._means is None else (self._means[0].cpu(), self._means[1].cpu())

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """The means of x and of y, each (groups, 1, columns), for centred moments with at least one row."""
        assert self._means is not None, "only for centred moments with at least one row"
        return self._means

    def total(self) -> Tensor:
        """The sum over all rows, which is `rows` times the moments; needs at least one row."""
        assert self._sum is not None, "needs at least one row"
        return self._sum

    def mean(self) -> Tensor:
        """The moments; needs at least one row."""
        return self.total() / self.rows

    def _products(self, left: Tensor, right: Tensor) -> Tensor:
        return (left * right).sum(1) if self._diagonal else left.transpose(1, 2) @ right

    def _include(self, products: Tensor) -> None:
        self._sum = products if self._sum is None else self._sum.add_(products)


def damped(gram: Tensor, ridge: float) -> Tensor:
    """Second moments with `ridge` times the mean of the diagonal added to the diagonal of each group.

    To a diagonal of zeros, ones are added, so that the result is always invertible.

    Args:
        gram: (groups, columns, columns).
        ridge: above 0.
    """
    mean = gram.diagonal(dim1=1, dim2=2).mean(1)
    added = torch.where(mean > 0, ridge * mean, torch.ones_like(mean))
    return gram + added[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)


def least_squares(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """Ridge regression: the B that minimizes ‖X B − Y‖² / rows + λ ‖B‖², with λ = ridge · mean diagonal of XᵀX / rows.

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
