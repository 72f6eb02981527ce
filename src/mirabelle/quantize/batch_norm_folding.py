"""Batch norms that a layer before them can take in: y = γ · (W x + b − μ) / √(σ² + ε) + β is a layer of its own.

Integer kernels join a layer with what follows it only where nothing but an activation stands in between.
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
from mirabelle.run.run import Run
from mirabelle.task.batch import Batch, arguments_of

_LAYERS = ("conv1d", "conv2d", "convolution", "linear")
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
_POOLING = ("max_pool1d", "max_pool2d")
_ROWS = 2  # dimensions of what a linear layer gives, for its outputs to be the channels of a norm


class FoldedNorm(Replacement):
    """Stands for a batch norm that the layer before it has taken in, and changes nothing.

    Args:
        dense: the norm.
        of: name of the layer that took it in.
        bias: whether that layer had no bias before.
    """

    def __init__(self, dense: nn.Module, *, of: str, bias: bool) -> None:
        super().__init__({"of": of, "bias": bias})
        assert isinstance(dense, _BatchNorm), "other norms are not folded"
        self._eps, self._features = dense.eps, dense.num_features

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs

    @property
    def borrowed_tensors(self) -> Mapping[str, str]:
        """The norm's own bias, where the layer that took it in had none before."""
        return {"bias": f"{self.settings['of']}.bias"} if self.settings["bias"] else {}

    def plain_tensors(self) -> dict[str, Tensor]:
        """Those of a norm that changes nothing."""
        ones, zeros = torch.ones(self._features), torch.zeros(self._features)
        return {"weight": ones, "bias": zeros, "running_mean": zeros.clone(), "running_var": ones - self._eps}


@dataclass(frozen=True)
class Consumer:
    """What reads a layer's result.

    Args:
        norm: a batch norm that alone reads it, by name.
        output: of convolutions "relu" or "plain", as a ReLU alone reads what comes of both, or not; "" where that should not be
            rounded: it is the model's own output, or a layer norm or softmax would magnify the rounding.
        layers: that read it then, where nothing else does: rounded themselves, they make the rounding of the output idle.
    """

    norm: str | None = None
    output: Literal["relu", "plain", ""] = ""
    layers: tuple[str, ...] = ()

    def rounds_for(self, quantized: Collection[str]) -> bool:
        """Whether the output must be rounded, where these layers round their inputs."""
        return bool(self.output) and not (self.layers and set(self.layers) <= set(quantized))

    def output_of(self, layer: str) -> str:
        """Where its range is seen, as `calibrate.activation_ranges` names it."""
        return f"{self.norm or layer}:{'relu' if self.output == 'relu' else 'output'}"


def consumers(model: nn.Module, example: Batch, run: Run) -> dict[str, Consumer]:
    """By the name of a linear or convolution layer, what reads its result.

    Layers and norms that run several times, share their tensors or keep no statistics are left alone; a model that cannot be
    traced has none, and the run is told. So has one without convolutions and batch norms, for which it would change nothing.
    """
    modules = dict(model.named_modules())
    if not any(isinstance(module, (_BatchNorm, nn.Conv1d, nn.Conv2d)) for module in modules.values()):
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
    """A program, read forwards from its layers."""

    def __init__(self, program: Program, modules: Mapping[str, nn.Module]) -> None:
        self._program, self._modules = program, modules

    def layer(self, node: fx.Node) -> str | None:
        """The linear or convolution module that a node runs, if it runs nowhere else."""
        if node.op != "call_function" or Call.of(node).name not in _LAYERS:
            return None
        return self._owner(Call.of(node)["weight"], "weight")

    def behind(self, node: fx.Node) -> Consumer:
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
        """The batch norm that alone reads a node, and what it gives; None, and the node, without one."""
        reader = _only_reader(node)
        rows = Call.of(node).name != "linear" or value_of(node).ndim == _ROWS
        if reader is None or reader.name not in _NORMS or not rows:
            return None, node
        norm = self._owner(reader.get("running_var"), "running_var")
        if norm is None or not isinstance(self._modules.get(norm), _BatchNorm):
            return None, node
        first = _only_reader(reader.node)  # of the three tensors that some kinds give
        return norm, first.node if first is not None and first.node.target is operator.getitem else reader.node

    def _owner(self, node: Any, tensor: str) -> str | None:
        """The module whose own tensor of this name a placeholder stands for, read nowhere else."""
        source = self._program.sources.get(node.name) if isinstance(node, fx.Node) else None
        if source is None or len(node.users) != 1 or len(self._program.names.get(source.name, ())) != 1:
            return None
        name, _, last = source.name.rpartition(".")
        return name if last == tensor else None


def _readers(node: fx.Node) -> list[fx.Node]:
    """What computes with a result; on the way it may be moved, and its greatest values taken, which rounding allows."""
    found: list[fx.Node] = []
    for user in node.users:
        passing = user.op == "call_function" and Call.of(user).name in (*_MOVING, *_POOLING)
        found += _readers(user) if passing else [user]
    return found


def _leads_to_exact(node: fx.Node) -> bool:
    """Whether a result is the model's output, or is divided by its own spread or sum, which would magnify what is rounded."""
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
