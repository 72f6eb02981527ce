"""An embedding as a narrower one and a linear layer."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.factorize.low_rank_linear import empty_linear
from mirabelle.model.replacement import Replacement


class LowRankEmbedding(Replacement):
    """y = expand(rows[i]): an embedding whose table of (entries, width) is R Eᵀ, of (entries, rank) and (rank, width).

    Args:
        dense: an Embedding.
        rank: width of the rows.
    """

    def __init__(self, dense: nn.Module, rank: int) -> None:
        super().__init__({"rank": rank})
        if not isinstance(dense, nn.Embedding):
            message = f"{type(dense).__name__} has no low-rank form of this kind"
            raise UserError("E140", message, "give the dense module from which the model was made")
        table = dense.weight
        self.rows = nn.Embedding(
            len(table),
            rank,
            padding_idx=dense.padding_idx,
            scale_grad_by_freq=dense.scale_grad_by_freq,
            sparse=dense.sparse,
            _weight=torch.zeros(len(table), rank, dtype=table.dtype, device=table.device),
        )
        self.expand = empty_linear(rank, table.shape[1], bias=False, like=table)
        self.train(dense.training)

    @classmethod
    @torch.no_grad()
    def factorized(cls, dense: nn.Embedding, directions: Tensor) -> Self:
        """Factorize an embedding: its rows are projected on orthonormal directions, (width, rank)."""
        layer = cls(dense, directions.shape[1])
        layer.rows.weight.copy_(dense.weight.double() @ directions)
        layer.expand.weight.copy_(directions)
        return layer

    @property
    def num_embeddings(self) -> int:
        return self.rows.num_embeddings

    @property
    def embedding_dim(self) -> int:
        return self.expand.out_features

    def forward(self, indices: Tensor) -> Tensor:
        result: Tensor = self.expand(self.rows(indices))
        return result

    def plain_tensors(self) -> dict[str, Tensor]:
        """The table of the dense embedding."""
        return {"weight": self.rows.weight @ self.expand.weight.t()}

    def extra_repr(self) -> str:
        return f"rank={self.settings['rank']}"
