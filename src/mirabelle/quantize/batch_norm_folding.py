"""Batch norm folding: a layer followed by a batch norm, y = γ · (W x + b − μ) / √(σ² + ε) + β, is a single linear layer.

Folding is needed because integer kernels can only fuse a layer with an activation that directly follows it.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mirabelle.errors import UserError
from mirabelle.graph.call import Call, value_of
from mirabelle.graph.trace import Program, traced
from mirabelle.model.replacement import Replacement
from mirabelle.model.state import copied
from mirabelle.quantize.dense_layers import CONVOLUTIONS
from mirabelle.run.run import Run
from mirabelle.task.batch import Batch, arguments_of

_LAYERS = ("conv1d", "conv2d", "conv3d", "convolution", "linear")
_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm")
_RELUS = ("relu", "relu_")
_DIVIDING = (
    "layer_norm",
    "native_layer_norm",
    "group_norm",
    "native_group_norm",
    "instance_norm",
    "rms_norm",
    "softmax",
    "_softmax",
)
_MOVING = ("permute", "transpose", "reshape", "view", "_unsafe_view", "flatten", "squeeze", "unsqueeze", "contiguous", "clone")
_POOLING = ("max_pool1d", "max_pool2d", "max_pool3d")
_ROWS = 2  # number of dimensions of a linear layer's output for which its features are the channels of a batch norm


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


@dataclass(frozen=True)
class Consumer:
    """The operations that use the output of a layer.

    Args:
        norm: name of a batch norm that is the only user of the output; None if there is none.
        output: for convolutions: "relu" if a ReLU is the only user of the output (of the batch norm, if there is one), and
            "plain" otherwise; "" if the output must not be quantized, because it is the output of the model, or because a
            layer norm or softmax would amplify the rounding errors.
        layers: names of the layers that use the output after that; () if other operations use it, too. If these layers
            quantize their inputs, the output need not be quantized.
    """

    norm: str | None = None
    output: Literal["relu", "plain", ""] = ""
    layers: tuple[str, ...] = ()

    def rounds_for(self, quantized: Collection[str]) -> bool:
        """Whether the output must be quantized, given the names of the layers that quantize their inputs."""
        return bool(self.output) and not (self.layers and set(self.layers) <= set(quantized))

    def output_of(self, layer: str) -> str:
        """The name in `calibration.ranges.activation_ranges` of the value to quantize."""
        return f"{self.norm or layer}:{'relu' if self.output == 'relu' else 'output'}"


def consumers(model: nn.Module, example: Batch, run: Run) -> dict[str, Consumer]:
    """Name of each linear or convolution layer -> the operations that use its output.

    Layers and norms that run several times or share their tensors, and norms without running statistics, are omitted. The
    result is empty if the model has neither convolutions nor batch norms, or if it cannot be traced, which the run records.
    """
    modules = dict(model.named_modules())
    if not any(isinstance(module, (_BatchNorm, *CONVOLUTIONS)) for module in modules.values()):
        return {}
    args, kwargs = arguments_of(example.inputs)
    try:
        program = traced(copied(model), args, kwargs)
    except UserError as error:
        run.event("decision", name="surroundings", value=f"not known: {error.message}")
        return {}
    reading = _Reading(program, modules)
    found = {reading.layer(node): node for node in program.graph.nodes}
    return {name: reading.behind(node) for name, node in found.items() if name is not None}


class _Reading:
    """Follows the outputs of layers through a traced program."""

    def __init__(self, program: Program, modules: Mapping[str, nn.Module]) -> None:
        self._program, self._modules = program, modules

    def layer(self, node: fx.Node) -> str | None:
        """The name of the linear or convolution module that a node computes, if it is computed only once."""
        if node.op != "call_function" or Call.of(node).name not in _LAYERS:
            return None
        return self._owner(Call.of(node)["weight"], "weight")

    def behind(self, node: fx.Node) -> Consumer:
        """The operations that use the output of a layer's node."""
        norm, end = self._norm(node)
        if Call.of(node).name == "linear":
            return Consumer(norm)
        reader = _only_reader(end)
        relu = reader is not None and reader.name in _RELUS
        if reader is not None and relu:
            end = reader.node
        if _leads_to_exact(end):
            return Consumer(norm)
        layers = [self.layer(user) for user in _readers(end)]
        known = tuple(name for name in layers if name is not None)
        return Consumer(norm, "relu" if relu else "plain", known if len(known) == len(layers) else ())

    def _norm(self, node: fx.Node) -> tuple[str | None, fx.Node]:
        """The batch norm that is the only user of a node, and the node of its output; (None, node) if there is none."""
        reader = _only_reader(node)
        rows = Call.of(node).name != "linear" or value_of(node).ndim == _ROWS
        if reader is None or reader.name not in _NORMS or not rows:
            return None, node
        norm = self._owner(reader.get("running_var"), "running_var")
        if norm is None or not isinstance(self._modules.get(norm), _BatchNorm):
            return None, node
        first = _only_reader(reader.node)  # some variants return three tensors, of which the first is the output
        return norm, first.node if first is not None and first.node.target is operator.getitem else reader.node

    def _owner(self, node: Any, tensor: str) -> str | None:
        """The name of the module that owns the tensor of a placeholder, if the tensor is called so and is used only once."""
        source = self._program.sources.get(node.name) if isinstance(node, fx.Node) else None
        if source is None or len(node.users) != 1 or len(self._program.names.get(source.name, ())) != 1:
            return None
        name, _, last = source.name.rpartition(".")
        return name if last == tensor else None


def _readers(node: fx.Node) -> list[fx.Node]:
    """The nodes that use a result, also through reshaping and max pooling, which commute with rounding."""
    readers: list[fx.Node] = []
    for user in node.users:
        passes = user.op == "call_function" and Call.of(user).name in (*_MOVING, *_POOLING)
        readers += _readers(user) if passes else [user]
    return readers


def _leads_to_exact(node: fx.Node) -> bool:
    """Whether a result is an output of the model, or is normalized (layer norm, softmax), which amplifies rounding errors."""
    for user in node.users:
        name = "" if user.op != "call_function" else Call.of(user).name
        if user.op == "output" or name in _DIVIDING or (name in _MOVING and _leads_to_exact(user)):
            return True
    return False


def _only_reader(node: fx.Node) -> Call | None:
    if len(node.users) != 1:
        return None
    (reader,) = node.users
    return Call.of(reader) if reader.op == "call_function" else None


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
