"""A linear layer as the product of two smaller ones."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.model.replacement import Replacement
from mirabelle.model.turned_linear import turned_linear
from mirabelle.numerics.low_rank import Decomposition


class LowRankLinear(Replacement):
    """y = expand(reduce(x)): a linear layer whose weight is U V, with U of (out, rank) and V of (rank, in).

    Both factors are plain linear layers, which later steps cut, prune and quantize like any other.

    Args:
        dense: a linear layer, or `Conv1D` of transformers.
        rank: number of columns of U.
    """

    def __init__(self, dense: nn.Module, rank: int) -> None:
        super().__init__({"rank": rank})
        weight, bias = weight_of(dense), getattr(dense, "bias", None)
        self.kind = type(dense).__name__
        out, inputs = weight.shape
        self.reduce = empty_linear(inputs, rank, bias=False, like=weight)
        self.expand = empty_linear(rank, out, bias=isinstance(bias, Tensor), like=weight)
        self.train(dense.training)

    @classmethod
    @torch.no_grad()
    def factorized(cls, dense: nn.Module, found: Decomposition, rank: int, mean: Tensor | None = None) -> Self:
        """Factorize a layer.

        Args:
            dense: the layer.
            found: decomposition of its weight as (out, in).
            rank: rank of the factors.
            mean: (in,), the mean of the inputs, if the decomposition is one of centred moments: what the factors lose of it
                goes into the bias.
        """
        layer = cls(dense, rank)
        left, right = found.factors(rank)
        layer.expand.weight.copy_(left)
        layer.reduce.weight.copy_(right)
        bias = getattr(dense, "bias", None)
        if isinstance(bias, Tensor):
            lost = 0.0 if mean is None else (weight_of(dense).double() - left @ right) @ mean.double()
            layer.expand.bias.copy_(bias.double() + lost)
        return layer

    @property
    def in_features(self) -> int:
        return self.reduce.in_features

    @property
    def out_features(self) -> int:
        return self.expand.out_features

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.expand(self.reduce(inputs))
        return result

    def plain_tensors(self) -> dict[str, Tensor]:
        """The weight U V and the bias of the dense layer."""
        weight = self.expand.weight @ self.reduce.weight
        found = {"weight": weight.t().contiguous() if self.kind == "Conv1D" else weight}
        bias: Tensor | None = self.expand.bias
        if self.reduce.bias is not None:  # constants of inputs that were cut
            inner = self.expand.weight @ self.reduce.bias
            bias = inner if bias is None else bias + inner
        return found if bias is None else {**found, "bias": bias}

    def extra_repr(self) -> str:
        return f"rank={self.settings['rank']}"


def weight_of(dense: nn.Module) -> Tensor:
    """The weight of a linear layer as (out, in).

    Raises:
        UserError: E140 for another module.
    """
    if not isinstance(dense, (nn.Linear, *turned_linear())):
        message = f"{type(dense).__name__} has no low-rank form"
        raise UserError("E140", message, "give the dense module from which the model was made")
    weight = dense.weight
    assert isinstance(weight, Tensor), "linear layers have a weight"
    return weight.detach().t() if isinstance(dense, turned_linear()) else weight.detach()


def empty_linear(inputs: int, outputs: int, *, bias: bool, like: Tensor) -> nn.Linear:
    """A linear layer of zeros with dtype and device of a tensor; draws no random numbers."""
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=like.dtype, device="meta").to_empty(device=like.device)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
