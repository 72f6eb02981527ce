"""Batch norm folding: a layer followed by a batch norm, y = γ · (W x + b − μ) / √(σ² + ε) + β, is a single linear layer.

Folding is needed because integer kernels can only fuse a layer with an activation that directly follows it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mirabelle.model.replacement import Replacement


class FoldedNorm(Replacement):
    """Replaces a batch norm that was folded into the previous layer; its output is its input.

    Args:
        dense: the batch norm.
        of: name of the layer into which it was folded.
        bias: whether that layer had no bias before the folding.
    """

    def __init__(self, dense: nn.Module, *, of: str, bias: bool) -> None:
        super().__init__({"of": of, "bias": bias})
        assert isinstance(dense, _BatchNorm), "other norms are not folded"
        self._eps, self._features = dense.eps, dense.num_features

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs

    @property
    def borrowed_tensors(self) -> Mapping[str, str]:
        """The bias of the batch norm is that of the layer into which it was folded, if this layer had none before."""
        return {"bias": f"{self.settings['of']}.bias"} if self.settings["bias"] else {}

    def plain_tensors(self) -> dict[str, Tensor]:
        """The tensors of a batch norm whose output is its input in eval mode."""
        ones, zeros = torch.ones(self._features), torch.zeros(self._features)
        return {"weight": ones, "bias": zeros, "running_mean": zeros.clone(), "running_var": ones - self._eps}


@torch.no_grad()
def folded(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """A copy of a layer with the batch norm that follows it folded into its weight, (out, ...), and bias, (out,).

    Args:
        layer: linear or convolution.
        norm: a batch norm with running statistics; its eval mode is folded.
    """
    assert isinstance(norm, _BatchNorm), "other norms are not folded"
    assert norm.running_mean is not None, "a norm without statistics is not folded"
    assert norm.running_var is not None, "a norm without statistics is not folded"
    joined: Any = copy.deepcopy(layer)
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    weight = joined.weight.double() * factor.reshape(-1, *[1] * (joined.weight.ndim - 1))
    own = 0.0 if joined.bias is None else joined.bias.double()
    bias = (own - norm.running_mean.double()) * factor
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    joined.weight = nn.Parameter(weight.to(joined.weight.dtype))
    joined.bias = nn.Parameter(bias.to(joined.weight.dtype))
    return joined  # type: ignore[no-any-return]  # a layer of the same class
