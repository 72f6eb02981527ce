"""Low-rank factors of matrices and of kernels, closest in the weights or in the outputs that they compute on data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_RIDGE = 1e-9  # of the mean second moment: orders directions that the data do not have by their weights


@dataclass(frozen=True)
class Decomposition:
    """A matrix W = left · right whose first r columns and rows are the best factors of rank r, for every r.

    Args:
        left: (outputs, k), with orthonormal columns; k is the smaller side of the matrix.
        right: (k, inputs).
        values: (k,), descending: the factors of rank r have the squared error Σ_{i ≥ r} values².
    """

    left: Tensor
    right: Tensor
    values: Tensor

    @property
    def full_rank(self) -> int:
        """The number of values."""
        return len(self.values)

    def lost(self) -> Tensor:
        """The share of the squared norm that factors of rank 0, 1, …, k lose, (k + 1,); zeros if the norm is 0."""
        squares = self.values.square()
        tails = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
        return tails / tails[0] if float(tails[0]) > 0 else tails

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Factors (outputs, rank) and (rank, inputs) of one size: √value of each component goes to each side."""
        scale = self.values[:rank].sqrt()
        scale = torch.where(scale > 0, scale, 1.0)
        return self.left[:, :rank] * scale, self.right[:rank] / scale[:, None]


def decomposed(weight: Tensor, moments: Tensor | None = None) -> Decomposition:
    """The singular value decomposition of a matrix, or the one whose truncations are closest in the outputs on data.

        without moments: ‖W − Ŵ‖² is least for every rank (Eckart, Young 1936);
        with moments C:  E ‖(W − Ŵ) x‖² = tr (W − Ŵ) C (W − Ŵ)ᵀ is least for every rank.

    With W C^½ = U S Vᵀ the second is Ŵ = U_r U_rᵀ W, the projection on the first principal components of the outputs, so that
    C^½ need not be inverted. The error is Σ_{i ≥ r} S_i².

    Args:
        weight: (outputs, inputs).
        moments: C, the second moments E x xᵀ, (inputs, inputs); centred ones, if a bias takes the mean of what is lost.

    Example:
        >>> found = decomposed(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> [round(value, 4) for value in found.values.tolist()], [round(share, 4) for share in found.lost().tolist()]
        ([4.0, 3.0], [1.0, 0.36, 0.0])
        >>> [round(value, 4) for value in decomposed(torch.eye(2), torch.diag(torch.tensor([1.0, 100.0]))).values.tolist()]
        [10.0, 1.0]

    Source: Chen, Yu, Dhillon, Hsieh 2021, "DRONE" (the optimum on data); Wang, Zheng, Wan, Zhang 2024, arXiv:2403.07378
    (SVD-LLM, whitening).
    """
    weight = weight.detach().double()
    if moments is None:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        return Decomposition(left, values[:, None] * right, values)
    left, values, _ = torch.linalg.svd(weight @ root_of(moments), full_matrices=False)
    return Decomposition(left, left.t() @ weight, values)


def root_of(moments: Tensor) -> Tensor:
    """The symmetric square root of second moments, (columns, columns), with 10⁻⁹ of their mean added to the diagonal."""
    moments = moments.detach().double()
    ridge = _RIDGE * float(moments.diagonal().mean())
    values, vectors = torch.linalg.eigh(moments)
    root: Tensor = (vectors * (values.clamp_min(0.0) + ridge).sqrt()) @ vectors.t()
    return root


def tucker(weight: Tensor, outputs: int, inputs: int, rounds: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """A kernel as a core between two factors of channels: W[o, i] ≈ Σ U[o, p] core[p, q] V[i, q] (Tucker-2).

    It starts from the higher-order singular value decomposition; then each factor in turn becomes the best one for the other
    (alternating least squares), which only lowers the error.

    Args:
        weight: (out, in, *kernel).
        outputs: rank of the output channels.
        inputs: rank of the input channels.
        rounds: number of alternations.

    Returns:
        U, (out, outputs), core, (outputs, inputs, *kernel), and V, (in, inputs), in float64; U and V have orthonormal columns.

    Example:
        >>> left, core, right = tucker(torch.ones(4, 3, 2, 2), outputs=1, inputs=1)
        >>> torch.allclose(torch.einsum("op,pqhw,iq->oihw", left, core, right), torch.ones(4, 3, 2, 2).double())
        True

    Source: De Lathauwer, De Moor, Vandewalle 2000 (higher-order orthogonal iteration); Kim, Park, Yoo, Choi, Yang, Shin 2016,
    arXiv:1511.06530 (convolutions).
    """
    flat = weight.detach().double().flatten(2)
    left, right = _channels(flat, outputs), _channels(flat.transpose(0, 1), inputs)
    for _ in range(rounds if outputs < flat.shape[0] and inputs < flat.shape[1] else 0):
        left = _channels(torch.einsum("oik,iq->oqk", flat, right), outputs)
        right = _channels(torch.einsum("oik,op->ipk", flat, left), inputs)
    core = torch.einsum("oik,op,iq->pqk", flat, left, right)
    return left, core.reshape(outputs, inputs, *weight.shape[2:]), right


def lost_by_channels(weight: Tensor, dimension: int) -> Tensor:
    """The share of the squared norm that is lost if one dimension keeps rank 0, 1, …, full; see `Decomposition.lost`."""
    flat = weight.detach().double().transpose(0, dimension).flatten(1)
    values = torch.linalg.eigvalsh(flat @ flat.t()).flip(0).clamp_min(0.0).sqrt()
    return Decomposition(flat, flat, values).lost()


def _channels(tensor: Tensor, rank: int) -> Tensor:
    """The first principal directions of the first dimension, (size, rank)."""
    flat = tensor.flatten(1)
    vectors: Tensor = torch.linalg.eigh(flat @ flat.t())[1].flip(1)
    return vectors[:, :rank]


def principal(rows: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The directions on which rows are projected with the least squared error, the first ones first.

    min Σ_v c_v ‖e_v − P e_v‖² over the projections P of rank r has P = D_r D_rᵀ, with the first r eigenvectors D of
    Σ_v c_v e_v e_vᵀ.

    Args:
        rows: e, (entries, width).
        counts: c, (entries,); None for ones.

    Returns:
        D, (width, k), in float64, with k the smaller side, and the share that is lost with rank 0, 1, …, k, (k + 1,).

    Example:
        >>> directions, lost = principal(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        >>> directions.abs(), lost.round(decimals=4)
        (tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64), tensor([1.0000, 0.1000, 0.0000], dtype=torch.float64))
    """
    rows = rows.detach().double()
    weighted = rows if counts is None else rows * counts.double()[:, None]
    values, directions = torch.linalg.eigh(weighted.t() @ rows)
    most = min(rows.shape)
    directions = directions.flip(1)[:, :most]
    return directions, Decomposition(directions, directions, values.flip(0)[:most].clamp_min(0.0).sqrt()).lost()
