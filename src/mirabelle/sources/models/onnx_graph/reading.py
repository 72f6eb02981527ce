"""A graph of an ONNX file, prepared to become a module: simplified, checked, and with its constants computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import onnx
import onnx.inliner
import torch
from torch import Tensor

from mirabelle.errors import UserError
from mirabelle.runtime.signature import Value as Input
from mirabelle.runtime.signature import signature_of
from mirabelle.sources.models.onnx_graph import (  # noqa: F401 (register operators)
    control,
    elementwise,
    losses,
    quantized,
    recurrent,
    reducing,
    regions,
    resizing,
    selecting,
    sequences,
    shapes,
    shaping,
    signals,
    spatial,
)
from mirabelle.sources.models.onnx_graph.branches import graphs_in, shapes_of, with_branches_taken
from mirabelle.sources.models.onnx_graph.computing import computed
from mirabelle.sources.models.onnx_graph.lowering import STANDARD, is_lowered, lowered
from mirabelle.sources.models.onnx_graph.nodes import ON_INTEGERS, REMEDY, TABLE, Node, node_of, tensor_from
from mirabelle.sources.models.onnx_graph.places import path_of
from mirabelle.sources.models.onnx_graph.precision import in_single_precision
from mirabelle.sources.models.onnx_graph.values import simplified, tensor_of

_DEPENDING = {  # operators that may depend on values -> the inputs at which a graph can be ended instead
    "Compress": slice(1), "NonMaxSuppression": slice(2), "NonZero": slice(1), "RoiAlign": slice(2), "Unique": slice(1),
    "If": slice(1, None), "Loop": slice(2, None),
}  # fmt: skip
_SCALED = ("QuantizeLinear", "DequantizeLinear", "Requantize", "QLinearAdd", "QLinearMul")  # by inputs that are no weights
_BIASED = ("MatMul",)  # a following Add of a vector is treated as the bias
_NUMBERS = (("Pad", 2, "value"), ("Resize", 2, "scales"), ("Resize", 1, "scales"), ("Upsample", 1, "scales"))
_OF_ONE_PROCESSOR = "com.microsoft.nchwc"  # the domain of operators in a memory layout of one kind of processor
_REFUSED = {  # operators of the standard that are named, not expanded to simpler ones
    "random numbers": ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    "text": ("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
    "encoded pictures": ("ImageDecoder",),
}
_REASONS = {kind: reason for reason, kinds in _REFUSED.items() for kind in kinds}


def is_covered(kind: str) -> bool:
    """Whether an operator of the standard's domain can be computed, or is written with others that can."""
    return kind in TABLE or is_lowered(onnx.NodeProto(op_type=kind))


class Reading:
    """A graph whose nodes that depend only on constants have been computed (constant folding).

    Args:
        proto: the ONNX model, including its weights.

    Raises:
        UserError: E121 if operators are not supported (the message names all of them), or a node has unsupported attributes.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._in_file = {name for entry in proto.graph.node for name in entry.output}
        proto, self.halved = in_single_precision(lowered(_inlined(proto)))
        _check_supported(proto.graph)
        version = next((entry.version for entry in proto.opset_import if entry.domain in STANDARD), 1)
        proto = with_branches_taken(proto, version)
        graph = proto.graph
        self.constants = {entry.name: tensor_from(entry) for entry in graph.initializer}
        self.learned = {name for name, tensor in self.constants.items() if _may_be_learned(tensor)}
        self.ranks = {name: len(sizes) for name, sizes in shapes_of(proto).items()}
        given, gives = signature_of(proto)
        self.batch = _fixed_batch(given)
        self.inputs = [replace(value, sizes=("batch", *value.sizes[1:])) if value.sizes else value for value in given]
        self.output_names = [value.name for value in gives]
        nodes = [node_of(entry, version, position) for position, entry in enumerate(graph.node)]
        nodes = [self._with_attributes(node) for node in nodes if not self._folded(node)]
        self.nodes = [self._with_computed_inputs(node) for node in _with_biases(_needed(nodes, self.output_names), self)]
        self.of_shapes = self._constants_of_shapes()
        self.learned -= {name for node in self.nodes if node.kind in _SCALED for name in node.inputs[1:]}

    def _constants_of_shapes(self) -> set[str]:
        """Floating-point constants that only shapes are computed with, such as factors of an interpolation."""
        derived: set[str] = set()
        others: set[str] = set(self.output_names)
        for node in self.nodes:
            of_shapes = node.kind in ON_INTEGERS and not derived.isdisjoint(node.inputs)
            of_shapes = of_shapes and all(name in derived or name in self.constants for name in node.inputs if name)
            if of_shapes or node.kind in ("Shape", "Size"):
                derived.update(node.outputs)
            else:
                others.update(node.inputs)
        return {name for node in self.nodes for name in node.inputs if name in self.constants} - others

    def name_of(self, node: Node) -> str:
        """The name of the layer of a node: that of its weight without ".weight", or else that of the node."""
        weight = node.inputs[1]
        if weight.endswith((".weight", "/weight")) and "::" not in weight:
            return path_of(weight[: -len(".weight")])
        parts = [part for part in node.name.split("/") if part]
        if len(parts) > 1 and parts[-1].split("_")[0] == node.kind:
            parts = parts[:-1]
        return path_of(".".join(parts))

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
        values = [tensor_of(value) for value in (found if isinstance(found, list) else [found])]
        if not all(isinstance(value, Tensor) for value in values):
            return False  # a sequence, or an empty optional value
        learned = bool(self.learned & set(node.inputs))
        for name, value in zip(node.outputs, values, strict=False):
            self.constants[name] = value
            if learned or (node.kind == "Constant" and _may_be_learned(value)):
                self.learned.add(name)
        return True

    def _with_computed_inputs(self, node: Node) -> Node:
        """The node, if it may depend on values, with the names of its inputs at which the graph can be ended instead."""
        if node.kind not in _DEPENDING:
            return node
        fixed = {"", *self.constants, *(value.name for value in self.inputs)}
        read = node.inputs[_DEPENDING[node.kind]]
        computed_inputs = tuple(name for name in dict.fromkeys(read) if name not in fixed and name in self._in_file)
        return replace(node, attributes={**node.attributes, "computed_inputs": computed_inputs})


def _may_be_learned(tensor: Tensor) -> bool:
    """Whether a constant may be a weight or its integer codes; int64 and bool are shapes, indices and masks."""
    return tensor.dtype not in (torch.int64, torch.bool)


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with functions inlined: those of the file, and operators that the ONNX standard defines by simpler ones."""
    kinds = {entry.op_type for graph in graphs_in(proto.graph) for entry in graph.node if entry.domain in STANDARD}
    composed = [("", kind) for kind in sorted(kinds - _REASONS.keys()) if not is_covered(kind)]
    composed += [(function.domain, function.name) for function in proto.functions]
    if not composed:
        return proto
    try:
        return onnx.inliner.inline_selected_functions(proto, composed, inline_schema_functions=True)
    except RuntimeError:  # optional inputs of such an operator are missing: it is reported as not supported instead
        return onnx.inliner.inline_local_functions(proto)


def _check_supported(graph: onnx.GraphProto) -> None:
    """Raise an error that names all unsupported operators of a graph and of those inside it, if there are any."""
    unknown = Counter(
        _named(entry)
        for part in graphs_in(graph)
        for entry in part.node
        if entry.domain not in STANDARD or not is_covered(entry.op_type)
    )
    if unknown:
        names = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in sorted(unknown.items()))
        laid_out = any(name.startswith(_OF_ONE_PROCESSOR) for name in unknown)
        remedy = "give the file from before ONNX Runtime's optimization, or optimize at most at the level extended"
        message = f"the ONNX graph has operators that are not supported: {names}"
        raise UserError("E121", message, remedy if laid_out else REMEDY)


def _named(entry: onnx.NodeProto) -> str:
    if entry.domain not in STANDARD:
        return f"{entry.domain}.{entry.op_type}"
    reason = _REASONS.get(entry.op_type)
    return f"{entry.op_type} ({reason})" if reason else entry.op_type


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


def _with_biases(nodes: Sequence[Node], reading: Reading) -> list[Node]:
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
