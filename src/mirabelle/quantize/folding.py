"""Batch norms that a layer before them can take in: y = γ · (W x + b − μ) / √(σ² + ε) + β is a layer of its own.

Integer kernels join a layer with what follows it only where nothing but an activation stands in between.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mirabelle.batch import Batch, arguments_of
from mirabelle.errors import UserError
from mirabelle.graph.call import Call, value_of
from mirabelle.graph.trace import traced
from mirabelle.run import Run
from mirabelle.state import copied

_LAYERS = ("conv1d", "conv2d", "convolution", "linear")
_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm")
_ROWS = 2  # dimensions of what a linear layer gives, for its outputs to be the channels of a norm


class FoldedNorm(nn.Module):
    """Stands for a batch norm that the layer before it has taken in, and changes nothing.

    Args:
        dense: the norm.
        of: name of the layer that took it in.
        bias: whether that layer had no bias before.
    """

    def __init__(self, dense: nn.Module, *, of: str, bias: bool) -> None:
        super().__init__()
        assert isinstance(dense, _BatchNorm), "other norms are not folded"
        self.settings: dict[str, Any] = {"of": of, "bias": bias}
        self._eps, self._features = dense.eps, dense.num_features

    @classmethod
    def standing_for(cls, dense: nn.Module, **settings: Any) -> FoldedNorm:
        return cls(dense, **settings)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs

    @property
    def bias_of(self) -> str | None:
        """The layer whose bias is the norm's own where both stand in plain numbers; None for one that had a bias before."""
        return self.settings["of"] if self.settings["bias"] else None

    def plain_tensors(self) -> dict[str, Tensor]:
        """Those of a norm that changes nothing."""
        ones, zeros = torch.ones(self._features), torch.zeros(self._features)
        return {"weight": ones, "bias": zeros, "running_mean": zeros.clone(), "running_var": ones - self._eps}


def norms_behind(model: nn.Module, example: Batch, run: Run) -> dict[str, str]:
    """By the name of a linear or convolution layer, the batch norm that alone reads what it gives.

    Layers and norms that run several times, share their tensors or keep no statistics are left alone; a model that cannot be
    traced has none, and the run is told.
    """
    modules = dict(model.named_modules())
    if not any(isinstance(module, _BatchNorm) for module in modules.values()):
        return {}
    args, kwargs = arguments_of(example.inputs)
    try:
        program = traced(copied(model), args, kwargs)
    except UserError as error:
        run.event("decision", name="norms", value=f"not folded: {error.message}")
        return {}

    def owner(node: Any, tensor: str) -> str | None:
        """The module whose own tensor of this name a placeholder stands for, read nowhere else."""
        source = program.sources.get(node.name) if isinstance(node, fx.Node) else None
        if source is None or len(node.users) != 1 or len(program.names.get(source.name, ())) != 1:
            return None
        name, _, last = source.name.rpartition(".")
        return name if last == tensor else None

    found: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.op != "call_function" or Call.of(node).name not in _NORMS:
            continue
        norm = Call.of(node)
        before = norm["input"]
        if not isinstance(before, fx.Node) or before.op != "call_function" or len(before.users) != 1:
            continue
        layer = Call.of(before)
        if layer.name not in _LAYERS or (layer.name == "linear" and value_of(before).ndim != _ROWS):
            continue
        names = owner(layer["weight"], "weight"), owner(norm.get("running_var"), "running_var")
        if None not in names and isinstance(modules.get(names[1] or ""), _BatchNorm):
            found[names[0] or ""] = names[1] or ""
    twice = {norm for norm, count in Counter(found.values()).items() if count > 1}
    return {layer: norm for layer, norm in found.items() if norm not in twice}


@torch.no_grad()
def folded(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """A copy of a layer, (out, ...), with a bias, that gives what the norm behind it gives in eval mode."""
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
