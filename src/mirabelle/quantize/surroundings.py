"""What stands around each layer in the traced program, and which values between layers can be integers.

Integer kernels follow each other without a conversion only where every value between them is rounded: outputs of convolutions,
of additions, concatenations, pools and activations, each with the ReLU that follows it.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mirabelle.errors import UserError
from mirabelle.graph.call import Call, tensors_in, value_of
from mirabelle.graph.trace import Program, traced
from mirabelle.model.call_results import HOLDER, calls_of, place_of
from mirabelle.model.state import copied
from mirabelle.quantize.dense_layers import CONVOLUTIONS
from mirabelle.quantize.numbered_calls import numbers_of, with_numbers
from mirabelle.run.run import Run
from mirabelle.task.batch import Batch, arguments_of

_LAYERS = ("conv1d", "conv2d", "conv3d", "convolution", "linear")
_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm")
_RELUS = ("relu", "relu_", "hardtanh", "hardtanh_", "clamp", "clamp_")  # the latter where their limits are those of relu6
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
_PICKING = ("slice", "alias")
_PADDING = ("pad", "constant_pad_nd")
_AVERAGING = tuple(f"{kind}{d}d" for kind in ("avg_pool", "adaptive_avg_pool") for d in (1, 2, 3))
_OF_INTEGERS = ("add", "mul", "cat", "mean", "sigmoid", "leaky_relu", *_RELUS, *_AVERAGING)  # runtimes have integer kernels
_OF_FLOATS = ("hardswish", "silu", "elu")  # between two conversions; the result is rounded, so that what follows has integers
_ROWS = 2  # number of dimensions of a linear layer's output for which its features are the channels of a batch norm
_IMAGES = 3  # the least number of dimensions with positions


@dataclass(frozen=True)
class Consumer:
    """The operations that use the output of a layer.

    Args:
        norm: name of a batch norm that is the only user of the output; None if there is none.
        output: for convolutions: "relu" or "relu6" if such an activation is the only user of the output (of the batch norm, if
            there is one), and "plain" otherwise; "" if the output must not be quantized, because it is the output of the model,
            or because a layer norm or softmax would amplify the rounding errors.
        layers: names of the layers that use the output after that; () if other operations use it, too. If these layers
            quantize their inputs, the output need not be quantized.
    """

    norm: str | None = None
    output: Literal["relu", "relu6", "plain", ""] = ""
    layers: tuple[str, ...] = ()

    def rounds_for(self, quantized: Collection[str]) -> bool:
        """Whether the output must be quantized, given the names of the layers that quantize their inputs."""
        return bool(self.output) and not (self.layers and set(self.layers) <= set(quantized))

    def output_of(self, layer: str) -> str:
        """The name in `calibration.ranges.activation_ranges` of the value to quantize."""
        return f"{self.norm or layer}:{'output' if self.output == 'plain' else self.output}"


@dataclass(frozen=True)
class Surroundings:
    """The values between the layers of a model.

    Args:
        consumers: name of each chosen layer -> the operations that use its output.
        calls: functions that the model calls, as in `model.call_results`.
        rounded: numbers of the calls whose results are to be rounded.
        inputs: name of a chosen layer -> name of the layer, or of the place of the call, whose rounded result it reads.
    """

    consumers: Mapping[str, Consumer] = field(default_factory=dict)
    calls: tuple[str, ...] = ()
    rounded: tuple[int, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def places(self) -> tuple[str, ...]:
        """The names of the modules for the rounded results of calls."""
        return tuple(f"{HOLDER}.{place_of(self.calls, number)}" for number in self.rounded)


@dataclass(frozen=True)
class Pair:
    """Two layers of which the second alone reads the output of the first, through functions with f(s · x) = s · f(x), s > 0.

    Args:
        first: name of the layer that gives the channels.
        norm: name of the batch norm that is the only user of its output; None if there is none.
        second: name of the layer that reads the channels.
    """

    first: str
    norm: str | None
    second: str


class Flow:
    """The traced program of a model, which tells what stands around its layers; nothing, if there is none.

    Args:
        program: without the nodes that tell the numbers of calls; None if there is none.
        calls: functions that the model calls, as in `model.call_results`.
        numbers: node -> number of the call that gives it.
        modules: of the model, by name.
    """

    def __init__(
        self,
        program: Program | None,
        calls: tuple[str, ...] = (),
        numbers: Mapping[fx.Node, int] | None = None,
        modules: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self._program, self._calls, self._numbers, self._modules = program, calls, numbers or {}, modules or {}
        self._images = any(isinstance(module, (_BatchNorm, *CONVOLUTIONS)) for module in self._modules.values())

    @classmethod
    def of(cls, model: nn.Module, example: Batch, run: Run, *, pairs: bool = False) -> Flow:
        """Trace a model, if anything is to be told: it has convolutions or batch norms, or `pairs` are asked for.

        Args:
            model: is not changed.
            example: the batch.
            run: records why a model has no trace.
            pairs: whether `pairs` will be asked for.
        """
        modules = dict(model.named_modules())
        if not pairs and not any(isinstance(module, (_BatchNorm, *CONVOLUTIONS)) for module in modules.values()):
            return cls(None)
        calls = () if hasattr(model, HOLDER) else calls_of(copied(model), example.inputs)
        args, kwargs = arguments_of(example.inputs)
        try:
            program = traced(with_numbers(model, calls), args, kwargs)
        except UserError as error:
            run.event("decision", name="surroundings", value=f"not known: {error.message}")
            return cls(None)
        return cls(program, calls, numbers_of(program.graph), modules)

    def around(self, chosen: Collection[str], floating: Collection[str] = ()) -> Surroundings:
        """What stands around the chosen layers.

        Layers and norms that run several times or share their tensors, and norms without running statistics, are omitted. The
        result is empty for a model that has neither convolutions nor batch norms.

        Args:
            chosen: names of the layers that are quantized.
            floating: names of places of results of calls that are not to be rounded.
        """
        if self._program is None or not self._images:
            return Surroundings()
        places = {node: f"{HOLDER}.{place_of(self._calls, number)}" for node, number in self._numbers.items()}
        numbers = {node: number for node, number in self._numbers.items() if places[node] not in floating}
        reading = _Reading(self._program, numbers, self._modules, chosen)
        rounded = reading.rounded()
        named = {end: places[end] for end in rounded.values()}
        named |= {reading.ends[name]: name for name, found in reading.consumers.items() if found.rounds_for(chosen)}
        read = {name: named.get(_source(Call.of(node)["input"])) for name, node in reading.nodes.items()}
        return Surroundings(
            reading.consumers,
            self._calls,
            tuple(sorted(numbers[end] for end in rounded.values())),
            {name: value for name, value in read.items() if value is not None},
        )

    def pairs(self, chosen: Collection[str]) -> tuple[Pair, ...]:
        """The chosen layers that follow each other with nothing between but a batch norm, ReLU, leaky ReLU, pooling and padding
        with zeros. A layer that runs several times or shares its tensors is in no pair.
        """
        if self._program is None:
            return ()
        reading = _Reading(self._program, self._numbers, self._modules, chosen)
        return tuple(pair for name in reading.nodes if (pair := reading.pair(name)) is not None)


class _Reading:
    """Follows the outputs of layers through a traced program."""

    def __init__(
        self, program: Program, numbers: Mapping[fx.Node, int], modules: Mapping[str, nn.Module], chosen: Collection[str]
    ) -> None:
        self._program, self._modules = program, modules
        self.numbers = numbers  # node -> number of the call whose result may be rounded
        nodes = {self._layer(node): node for node in program.graph.nodes}
        self.nodes = {name: node for name, node in nodes.items() if name is not None and name in chosen}
        self._names = {node: name for name, node in self.nodes.items()}
        self.ends: dict[str, fx.Node] = {}  # layer -> node of its output, behind its norm and ReLU
        self.consumers = {name: self._behind(name, node) for name, node in self.nodes.items()}

    def rounded(self) -> dict[fx.Node, fx.Node]:
        """Node of each call whose result is rounded -> the node of the rounded value, that of a ReLU behind it if there is one.

        All that it reads is rounded, and an integer kernel reads it.
        """
        ends = {node: self._end(node) for node in self.numbers if _kind(node) in (*_OF_INTEGERS, *_OF_FLOATS)}
        inside = {end for node, end in ends.items() if end is not node}
        of_layers = {self.ends[name] for name, found in self.consumers.items() if found.rounds_for(self.nodes)}
        given = {node: end for node, end in ends.items() if node not in inside and node not in self.ends.values()}
        kept = {node: end for node, end in given.items() if _computes_integers(node) and not _leads_to_exact(end)}
        while True:
            known = {*of_layers, *kept.values()}
            left = {node: end for node, end in kept.items() if self._is_between(node, end, known, kept)}
            if left == kept:
                return kept
            kept = left

    def pair(self, name: str) -> Pair | None:
        """The pair of a layer and the one that alone reads its output, if channels between them can be scaled."""
        node = self.nodes[name]
        norm, end = self._norm(node)
        maker = Call.of(node if norm is None else next(iter(node.users)))
        linear = Call.of(node).name == "linear"
        if not self._has_own_numbers(maker, norm or name):
            return None
        while (reader := _only_reader(end)) is not None:
            second = self._names.get(reader.node)
            if second is not None:
                return Pair(name, norm, second) if reader["input"] is end and linear == (reader.name == "linear") else None
            if not _is_homogeneous(reader, images=not linear):
                return None
            end = reader.node
        return None

    def _has_own_numbers(self, called: Call, name: str) -> bool:
        """Whether a layer or norm has a weight, and no other shares that or its bias."""
        bias = called.get("bias")
        own_bias = bias is None or self._owner(bias, "bias") == name
        return own_bias and self._owner(called.get("weight"), "weight") == name

    def _is_between(self, node: fx.Node, end: fx.Node, known: Collection[fx.Node], kept: Collection[fx.Node]) -> bool:
        reads = _kind(node) in _OF_FLOATS or all(_source(given) in known for given in node.all_input_nodes)
        return reads and any(reader in self._names or reader in kept for reader in _readers(end))

    def _end(self, node: fx.Node) -> fx.Node:
        reader = _only_reader(node)
        return reader.node if reader is not None and _activation(reader) and reader.node in self.numbers else node

    def _layer(self, node: fx.Node) -> str | None:
        """The name of the linear or convolution module that a node computes, if it is computed only once."""
        if node.op != "call_function" or Call.of(node).name not in _LAYERS:
            return None
        return self._owner(Call.of(node)["weight"], "weight")

    def _behind(self, name: str, node: fx.Node) -> Consumer:
        """The operations that use the output of a layer's node."""
        norm, end = self._norm(node)
        self.ends[name] = end
        if Call.of(node).name == "linear":
            return Consumer(norm)
        reader = _only_reader(end)
        activation = None if reader is None else _activation(reader)
        if reader is not None and activation is not None:
            self.ends[name] = end = reader.node
        if _leads_to_exact(end):
            return Consumer(norm)
        layers = [self._layer(user) for user in _readers(end)]
        known = tuple(name for name in layers if name is not None)
        return Consumer(norm, activation or "plain", known if len(known) == len(layers) else ())

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


def _kind(node: fx.Node) -> str:
    return Call.of(node).name if node.op == "call_function" else ""


def _computes_integers(node: fx.Node) -> bool:
    """Whether an operator has an integer kernel with these arguments, or is between conversions anyway."""
    called = Call.of(node)
    if called.name in ("add", "mul"):
        both = [tensors_in(called[name]) for name in ("self", "other")]
        return all(both) and called.get("alpha", 1) == 1
    if called.name in _RELUS:
        return _activation(called) is not None
    if called.name == "mean":
        value = value_of(node.all_input_nodes[0])
        over = sorted(d % value.ndim for d in called["dim"] or ()) if value.ndim >= _IMAGES else []
        return over == list(range(2, value.ndim)) and bool(over)
    return True


def _activation(called: Call) -> Literal["relu", "relu6"] | None:
    """The name of the activation that a call computes, if integer kernels take it in by their range."""
    if called.name.startswith("relu"):
        return "relu"
    names = ("min", "max") if called.name.startswith("clamp") else ("min_val", "max_val")
    limits = [called.get(name) for name in names]
    return "relu6" if called.name in _RELUS and limits == [0, 6] else None


def _is_homogeneous(called: Call, *, images: bool) -> bool:
    """Whether a call gives f(s · x) = s · f(x) for a positive s of each channel, and leaves the channels where they are.

    Args:
        called: the call.
        images: whether channels are the second dimension, before those over which a function pools or which it pads.
    """
    if called.name == "dropout":
        return not called["train"]
    if called.name in _PADDING:
        return images and _passes(called.node) and len(called["pad"]) <= 2 * (value_of(called.node).ndim - 2)
    if called.name in (*_POOLING, *_AVERAGING):
        return images
    return called.name in ("leaky_relu", "clone", "alias", "contiguous") or _activation(called) == "relu"


def _source(node: fx.Node) -> fx.Node:
    """The node whose values a node only moves or picks."""
    while _passes(node):
        node = node.all_input_nodes[0]
    return node


def _passes(node: fx.Node) -> bool:
    """Whether every element of a result is an element of the only input, or an added zero, so that it is rounded as that is."""
    kind = _kind(node)
    if kind in _PADDING:
        called = Call.of(node)
        return called.get("mode", "constant") == "constant" and not called.get("value", 0)
    return kind in (*_MOVING, *_POOLING, *_PICKING)


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that use a result, also through reshaping and max pooling, which commute with rounding."""
    for user in node.users:
        if _passes(user):
            yield from _readers(user)
        else:
            yield user


def _leads_to_exact(node: fx.Node) -> bool:
    """Whether a result is an output of the model, or is normalized (layer norm, softmax), which amplifies rounding errors."""
    return any(
        user.op == "output" or _kind(user) in _DIVIDING or (_kind(user) in _MOVING and _leads_to_exact(user))
        for user in node.users
    )


def _only_reader(node: fx.Node) -> Call | None:
    if len(node.users) != 1:
        return None
    (reader,) = node.users
    return Call.of(reader) if reader.op == "call_function" else None
