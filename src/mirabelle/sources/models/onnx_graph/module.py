"""An ONNX graph as a PyTorch module: nodes with constant weights become layers, all others are computed one by one."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx
import onnx.inliner
import onnx.shape_inference
import torch
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.numerics.arrays import to_numpy
from mirabelle.runtime.signature import Value as Input
from mirabelle.runtime.signature import drawn_inputs, signature_of
from mirabelle.sources.models.onnx_graph import elementwise, reducing, shapes, shaping, spatial  # noqa: F401 (register operators)
from mirabelle.sources.models.onnx_graph.layers import MADE, module_of
from mirabelle.sources.models.onnx_graph.nodes import ON_INTEGERS, REMEDY, TABLE, Node, node_of, tensor_from
from mirabelle.sources.models.onnx_graph.recurrent import Recurrent
from mirabelle.sources.models.onnx_graph.values import Value, integers, is_integers, simplified, tensor_of
from mirabelle.task.batch import Batch, Inputs, tensors_of

_RECURRENT = ("LSTM", "GRU", "RNN")
_WHOLE = {"": "ai.onnx", "ai.onnx": "ai.onnx"}
_LAYERS = {*MADE, "BatchNormalization"}
_BIASED = ("MatMul",)  # a following Add of a vector is treated as the bias
_NUMBERS = (("Pad", 2, "value"), ("Resize", 2, "scales"), ("Resize", 1, "scales"), ("Upsample", 1, "scales"))
_ON_ANYTHING = ("Identity", "Shape", "Size", "Range", "ConstantOfShape", "Gather")  # also accept shape integers


@dataclass(frozen=True)
class _Call:
    """One node of the graph, computed by the submodule named `place`, or by a function if that is None."""

    node: Node
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    place: str | None


class OnnxModule(nn.Module):
    """An ONNX graph as a PyTorch module that can be trained, pruned, quantized and exported to ONNX again.

    Convolutions, matrix products, normalizations and recurrent layers with constant weights are PyTorch layers, named as in the
    file. Other floating-point constants with several elements are parameters. Nodes that depend only on constants are computed
    once. The batch axis is dynamic, even if the file fixes it. Inputs and outputs keep their names in an exported file.

    Args:
        proto: the ONNX model, including its weights.

    Raises:
        UserError: E121 if operators are not supported (the message names all of them), or a node has unsupported attributes.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        super().__init__()
        graph = _Reading(proto)
        self.inputs = graph.inputs
        self.input_names, self.output_names = [one.name for one in graph.inputs], graph.output_names
        self.fixed_batch = graph.batch
        self._integers: dict[str, Value] = {}
        self._seen: dict[tuple[tuple[int, ...], bytes], nn.Parameter] = {}
        self._places: dict[str, str] = {}  # constant -> name of its parameter or buffer
        self._calls = [self._call(node, graph) for node in graph.nodes]
        needed = {name for call in self._calls for name in call.inputs} | set(self.output_names)
        for name in sorted(needed & graph.constants.keys()):
            self._store(name, graph)
        self._seen.clear()
        self.eval()

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        values: dict[str, Value] = {**dict(zip(self.input_names, args, strict=False)), **kwargs, "": None, **self._integers}
        for name, place in self._places.items():
            values[name] = _get(self, place)
        batch = values[self.input_names[0]].shape[0] if self.fixed_batch is not None else None
        for call in self._calls:
            inputs = [values[name] for name in call.inputs]
            found = _get(self, call.place)(*inputs) if call.place is not None else self._computed(call.node, inputs, batch)
            outputs = found if isinstance(found, list) else [found]
            values.update(zip(call.outputs, outputs, strict=False))
        given = [tensor_of(values[name]) for name in self.output_names]
        return given[0] if len(given) == 1 else tuple(given)

    def check(self, inputs: Inputs) -> None:
        """Raise an error unless the inputs have the names, the number and the sizes of the graph's inputs.

        Raises:
            UserError: E131; the message gives the actual and the required inputs.
        """
        if isinstance(inputs, Mapping) and set(inputs) != set(self.input_names):
            message = f"the data have the inputs {', '.join(inputs)}, but the ONNX graph has {', '.join(self.input_names)}"
            raise UserError("E131", message, "name the inputs as in the graph")
        given = [inputs[name] for name in self.input_names] if isinstance(inputs, Mapping) else tensors_of(inputs)
        if len(given) != len(self.inputs):
            due_inputs = f"{len(self.inputs)} ({', '.join(self.input_names)})"
            message = f"the data have {len(given)} inputs, but the ONNX graph has {due_inputs}"
            raise UserError("E131", message, "give all of them")
        for due, tensor in zip(self.inputs, given, strict=True):
            sizes = tuple(size if isinstance(size, int) else None for size in due.sizes or ())[1:]
            fits = len(sizes) == tensor.ndim - 1 and all(map(_fits, sizes, tensor.shape[1:]))
            if due.sizes and not fits:
                required = " × ".join(str(size or "any") for size in sizes)
                own = " × ".join(map(str, tensor.shape[1:]))
                remedy = "change the size of the data, for example by `size` among the arguments of a folder of images"
                message = f'the data are {own}, but input "{due.name}" of the ONNX graph is {required}'
                raise UserError("E131", message, remedy)

    def scores_before(self, kind: str) -> str | None:
        """The name of the input of the last operator, if the graph has one output and this operator is of the given kind."""
        makers = {call.outputs[0]: call for call in self._calls}
        last = makers.get(self.output_names[0]) if len(self.output_names) == 1 else None
        return last.inputs[0] if last is not None and last.node.kind == kind else None

    def example(self, count: int = 2) -> Batch | None:
        """Random inputs; None if the graph has dynamic axes other than the batch."""
        if any(one.sizes is None or not all(isinstance(size, int) for size in one.sizes[1:]) for one in self.inputs):
            return None
        drawn = [torch.from_numpy(array) for array in drawn_inputs(self.inputs, count).values()]
        return Batch(drawn[0] if len(drawn) == 1 else tuple(drawn), torch.zeros(count))

    def _computed(self, node: Node, inputs: list[Value], batch: Any) -> Value:
        if self.fixed_batch is not None and node.kind == "Reshape" and _begins_with(inputs[1], self.fixed_batch):
            inputs = [inputs[0], integers([batch, *inputs[1].flat[1:]])]
        return computed(node, inputs)

    def _call(self, node: Node, graph: _Reading) -> _Call:
        weights = [graph.constants.get(name) for name in node.inputs[1:]]
        constant = all(name in graph.constants for name in node.inputs[1:] if name)
        if node.kind in _LAYERS and len(node.inputs) > 1 and constant and node.inputs[0] not in graph.constants:
            layer = module_of(node, weights, graph.ranks.get(node.inputs[0]))
            if layer is not None:
                if isinstance(weight := getattr(layer, "weight", None), nn.Parameter):
                    layer.weight = self._shared(weight)
                place = _add(self, graph.name_of(node), layer)
                return _Call(node, node.inputs[:1], node.outputs, place)
        if node.kind in _RECURRENT:
            if not all(name in graph.constants for name in node.inputs[1:4] if name):
                raise node.refuse("weights that are not constant")
            place = _add(self, graph.name_of(node), Recurrent(node, weights[:3]))
            return _Call(node, (node.inputs[0], *node.inputs[5:7]), node.outputs, place)
        return _Call(node, node.inputs, node.outputs, None)

    def _shared(self, parameter: nn.Parameter) -> nn.Parameter:
        """The first parameter with equal values, for matrices, since exporters duplicate tied weights of embedding and head.

        Vectors are not shared: equal ones are usually those of untrained normalization layers.
        """
        if parameter.ndim < 2:  # noqa: PLR2004
            return parameter
        digest = hashlib.blake2b(to_numpy(parameter.contiguous()).data, digest_size=16).digest()
        return self._seen.setdefault((tuple(parameter.shape), digest), parameter)

    def _store(self, name: str, graph: _Reading) -> None:
        """Store a constant as shape integers, as a trainable parameter, or as a buffer."""
        tensor = graph.constants[name]
        plain = simplified(tensor)
        if not isinstance(plain, Tensor):
            self._integers[name] = plain
            return
        learned = name in graph.learned and tensor.is_floating_point() and tensor.numel() > 1
        item = self._shared(nn.Parameter(tensor.clone())) if learned else tensor.clone()
        self._places[name] = _add(self, _path(name), item)


class _Reading:
    """A graph whose nodes that depend only on constants have been computed (constant folding)."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        proto = _inlined(proto)
        version = next((entry.version for entry in proto.opset_import if entry.domain in _WHOLE), 1)
        graph = proto.graph
        self.constants = {entry.name: tensor_from(entry) for entry in graph.initializer}
        self.learned = set(self.constants)
        _check_supported(graph)
        _check_precision(self.constants)
        self.ranks = _ranks_of(proto)
        given, gives = signature_of(proto)
        self.batch = _fixed_batch(given)
        self.inputs = [replace(value, sizes=("batch", *value.sizes[1:])) if value.sizes else value for value in given]
        self.output_names = [value.name for value in gives]
        nodes = [node_of(entry, version, position) for position, entry in enumerate(graph.node)]
        nodes = [self._with_attributes(node) for node in nodes if not self._folded(node)]
        self.nodes = _with_biases(_needed(nodes, self.output_names), self)
        self._taken: Counter[str] = Counter()

    def name_of(self, node: Node) -> str:
        """The name of the layer of a node: that of its weight without ".weight", or else that of the node."""
        weight = node.inputs[1]
        if weight.endswith((".weight", "/weight")) and "::" not in weight:
            return _path(weight[: -len(".weight")])
        parts = [part for part in node.name.split("/") if part]
        if len(parts) > 1 and parts[-1].split("_")[0] == node.kind:
            parts = parts[:-1]
        return _path(".".join(parts))

    def _with_attributes(self, node: Node) -> Node:
        """The node with constant inputs as attributes, as in older operator sets, so that traces do not read tensors."""
        for kind, position, attribute in _NUMBERS:
            if node.kind == kind and len(node.inputs) > position and node.inputs[position] in self.constants:
                numbers = self.constants[node.inputs[position]].flatten().tolist()
                if numbers:
                    attributes = {**node.attributes, attribute: numbers[0] if attribute == "value" else tuple(numbers)}
                    inputs = (*node.inputs[:position], "", *node.inputs[position + 1 :])
                    return replace(node, inputs=inputs, attributes=attributes)
        return node

    def _folded(self, node: Node) -> bool:
        """Compute a node whose inputs are all constants, and store its outputs as constants; False for other nodes."""
        if not all(name in self.constants for name in node.inputs if name):
            return False
        with torch.no_grad():
            found = computed(node, [simplified(self.constants[name]) if name else None for name in node.inputs])
        for name, value in zip(node.outputs, found if isinstance(found, list) else [found], strict=False):
            self.constants[name] = tensor_of(value)
            if self.learned & set(node.inputs):
                self.learned.add(name)
        return True


def computed(node: Node, inputs: Sequence[Value]) -> Value:
    """The output of a node for these inputs, or a list of its outputs."""
    given = [value for value in inputs if value is not None]
    if given and node.kind in ON_INTEGERS and all(map(is_integers, given)):
        return ON_INTEGERS[node.kind](node, *inputs)
    if inputs and is_integers(inputs[0]) and node.kind not in _ON_ANYTHING:
        inputs = [tensor_of(inputs[0]), *inputs[1:]]
    return TABLE[node.kind](node, *inputs)


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with functions inlined: those of the file, and operators that the ONNX standard defines by simpler ones."""
    kinds = {entry.op_type for entry in proto.graph.node if entry.domain in _WHOLE} - TABLE.keys() - set(_RECURRENT)
    composed = [("", kind) for kind in sorted(kinds)]
    composed += [(function.domain, function.name) for function in proto.functions]
    if not composed:
        return proto
    try:
        return onnx.inliner.inline_selected_functions(proto, composed, inline_schema_functions=True)
    except RuntimeError:  # optional inputs of such an operator are missing: it is reported as not supported instead
        return onnx.inliner.inline_local_functions(proto)


def _check_supported(graph: onnx.GraphProto) -> None:
    """Raise an error that names all unsupported operators of a graph, if there are any."""
    known = TABLE.keys() | set(_RECURRENT)
    unknown = Counter(
        f"{entry.domain}.{entry.op_type}" if entry.domain not in _WHOLE else entry.op_type
        for entry in graph.node
        if entry.domain not in _WHOLE or entry.op_type not in known
    )
    if unknown:
        names = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in sorted(unknown.items()))
        raise UserError("E121", f"the ONNX graph has operators that are not supported: {names}", REMEDY)


def _check_precision(constants: Mapping[str, Tensor]) -> None:
    half = [name for name, tensor in constants.items() if tensor.dtype in (torch.float16, torch.bfloat16)]
    if half:
        message = f'the ONNX graph has weights in half precision, for example "{half[0]}"'
        raise UserError("E121", message, "export it in float32")


def _ranks_of(proto: onnx.ModelProto) -> dict[str, int]:
    """The numbers of dimensions of values, as far as ONNX shape inference finds them."""
    try:
        graph = onnx.shape_inference.infer_shapes(proto).graph
    except Exception:  # noqa: BLE001 (shape inference is optional and may raise anything)
        graph = proto.graph
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _fixed_batch(inputs: Sequence[Input]) -> int | None:
    """The batch size to which the file fixes the first axis of all its inputs; None if it is dynamic."""
    firsts = {value.sizes[0] for value in inputs if value.sizes}
    fixed = firsts.pop() if len(firsts) == 1 else None
    return fixed or None if isinstance(fixed, int) else None


def _needed(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    """The nodes on which the outputs depend, in their order (dead code elimination)."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.outputs):
            needed |= set(node.inputs)
            kept.append(node)
    return kept[::-1]


def _with_biases(nodes: Sequence[Node], reading: _Reading) -> list[Node]:
    """The nodes, with each addition of a constant vector to a matrix product fused into a product with a bias."""
    readers = Counter(name for node in nodes for name in node.inputs)
    makers = {node.outputs[0]: node for node in nodes if node.kind in _BIASED and len(node.inputs) == 2}  # noqa: PLR2004
    fused: dict[int, Node] = {}
    gone = set()
    for node in nodes:
        if node.kind != "Add":
            continue
        for product, bias in (node.inputs, node.inputs[::-1]):
            maker = makers.get(product)
            vector, weight = reading.constants.get(bias), reading.constants.get(maker.inputs[1]) if maker else None
            alone = readers[product] == 1 and product not in reading.output_names
            if maker and alone and _is_bias(vector, weight):
                fused[id(node)] = Node(
                    "MatMul", maker.name, (*maker.inputs, bias), node.outputs, maker.attributes, maker.version
                )
                gone.add(id(maker))
                break
    return [fused.get(id(node), node) for node in nodes if id(node) not in gone]


def _is_bias(vector: Tensor | None, weight: Tensor | None) -> bool:
    """Whether a constant is a vector with one number for each column of a constant matrix."""
    if vector is None or weight is None:
        return False
    return weight.ndim == 2 and vector.shape == weight.shape[1:]  # noqa: PLR2004


def _fits(due: int | None, size: int) -> bool:
    return due in (None, size)


def _begins_with(target: Value, batch: int) -> bool:
    return is_integers(target) and target.size > 1 and isinstance(target[0], int) and target[0] == batch


def _path(name: str) -> str:
    """A name in the file as a dotted path of submodules."""
    parts = [re.sub(r"\W+", "_", part).strip("_") for part in re.split(r"[./]", name)]
    return ".".join(part if not part[0].isdigit() or len(parts) > 1 else f"_{part}" for part in parts if part) or "constant"


def _add(root: nn.Module, path: str, item: nn.Module | nn.Parameter | Tensor) -> str:
    """Add an item to nested submodules under `path`, or a similar unused name; returns the name."""
    *containers, last = path.split(".")
    module, taken = root, []
    for name in containers:
        child = getattr(module, name, None)
        if not _is_container(child):
            name, child = _free(module, name), nn.Module()  # noqa: PLW2901
            module.add_module(name, child)
        module = child  # type: ignore[assignment]
        taken.append(name)
    last = _free(module, last)
    if isinstance(item, nn.Module):
        module.add_module(last, item)
    elif isinstance(item, nn.Parameter):
        module.register_parameter(last, item)
    else:
        module.register_buffer(last, item)
    return ".".join((*taken, last))


def _is_container(child: Any) -> bool:
    return type(child) is nn.Module


def _free(module: nn.Module, name: str) -> str:
    return next(found for found in _numbered(name) if not hasattr(module, found))


def _numbered(name: str) -> Iterator[str]:
    yield name
    count = 2
    while True:
        yield f"{name}_{count}"
        count += 1


def _get(root: nn.Module, place: str) -> Any:
    found: Any = root
    for name in place.split("."):
        found = getattr(found, name)
    return found
