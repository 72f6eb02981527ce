"""Rewrites quantized and fused operators by simpler ones of the standard, so that their weights become weights of layers.

Fused operators are those that ONNX Runtime's optimizer and quantizer write, in the domain com.microsoft.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper
from torch import Tensor

from mirabelle.sources.models.onnx_graph.branches import graphs_in
from mirabelle.sources.models.onnx_graph.nodes import Node, operator

STANDARD = ("", "ai.onnx")
MICROSOFT = "com.microsoft"


class _Nodes:
    """The nodes that replace one node.

    Args:
        node: the one that is replaced.
    """

    def __init__(self, node: NodeProto) -> None:
        self.node = node
        self.made: list[NodeProto] = []
        self._attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}

    def attribute(self, name: str, default: Any = None) -> Any:
        value = self._attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def attributes(self, *left_out: str) -> dict[str, Any]:
        return {name: value for name, value in self._attributes.items() if name not in left_out}

    def input(self, position: int) -> str:
        """The name of an input; "" if it is missing."""
        return self.node.input[position] if position < len(self.node.input) else ""

    def add(self, kind: str, *inputs: str, into: str = "", count: int = 1, **attributes: Any) -> Any:
        """Add a node; returns the name of its output, or of each of several."""
        outputs = [into] if into else [f"{self._name}/{kind}_{len(self.made)}/output_{k}" for k in range(count)]
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        self.made.append(helper.make_node(kind, inputs, outputs, f"{self._name}/{kind}_{len(self.made)}", **attributes))
        return outputs[0] if count == 1 else outputs

    def constant(self, value: Any, kind: Any = np.float32) -> str:
        tensor = onnx.numpy_helper.from_array(np.asarray(value, kind))
        return str(self.add("Constant", value=tensor))

    @property
    def _name(self) -> str:
        return self.node.name or f"{self.node.op_type}_{self.node.output[0]}"


_Rule = Callable[[_Nodes], None]
_RULES: dict[tuple[str, str], _Rule] = {}


def _rule(domain: str, *kinds: str) -> Callable[[_Rule], _Rule]:
    def enter(function: _Rule) -> _Rule:
        _RULES.update({(domain, kind): function for kind in kinds})
        return function

    return enter


def is_lowered(node: NodeProto) -> bool:
    """Whether there is a rule for an operator."""
    return _key(node) in _RULES


def lowered(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model after quantized and fused operators, also in graphs inside nodes, are replaced by simpler ones."""
    if not any(is_lowered(node) for graph in graphs_in(proto.graph) for node in graph.node):
        return proto
    found = onnx.ModelProto()
    found.CopyFrom(proto)
    for graph in graphs_in(found.graph):
        made = [part for node in graph.node for part in _replaced(node)]
        del graph.node[:]
        graph.node.extend(made)
    return found


def _replaced(node: NodeProto) -> Iterator[NodeProto]:
    if not is_lowered(node):
        yield NodeProto.FromString(node.SerializeToString())
        return
    nodes = _Nodes(node)
    _RULES[_key(node)](nodes)
    yield from nodes.made


def _key(node: NodeProto) -> tuple[str, str]:
    return ("" if node.domain in STANDARD else node.domain, node.op_type)


@_rule("", "QLinearConv")
def _quantized_convolution(nodes: _Nodes) -> None:
    x, weight = _centered(nodes, 0, 2), nodes.add("DequantizeLinear", *nodes.node.input[3:6], axis=0)
    y = nodes.add("Conv", x, weight, **nodes.attributes())
    scales = (nodes.input(1), nodes.input(4), *nodes.node.input[6:8])
    nodes.add("Requantize", y, *scales, nodes.input(8), axis=1, into=nodes.node.output[0])


@_rule("", "QLinearMatMul")
@_rule(MICROSOFT, "QLinearMatMul")
def _quantized_product(nodes: _Nodes) -> None:
    a, b = _centered(nodes, 0, 2, axis=-2), nodes.add("DequantizeLinear", *nodes.node.input[3:6], axis=-1)
    scales = (nodes.input(1), nodes.input(4), *nodes.node.input[6:8])
    nodes.add("Requantize", nodes.add("MatMul", a, b), *scales, axis=-1, into=nodes.node.output[0])


@_rule("", "MatMulInteger")
def _integer_product(nodes: _Nodes) -> None:
    a, b = _centered(nodes, 0, 2, axis=-2), _centered(nodes, 1, 3, axis=-1)
    nodes.add("IntegerSums", nodes.add("MatMul", a, b), into=nodes.node.output[0])


@_rule("", "ConvInteger")
def _integer_convolution(nodes: _Nodes) -> None:
    x, weight = _centered(nodes, 0, 2, axis=1), _centered(nodes, 1, 3, axis=0)
    y = nodes.add("Conv", x, weight, **nodes.attributes())
    nodes.add("IntegerSums", y, into=nodes.node.output[0])


def _centered(nodes: _Nodes, codes: int, zero: int, *, axis: int = 1) -> str:
    """Codes minus their zero point, in float32: sums of their products are exact up to 2²⁴."""
    return str(nodes.add("DequantizeLinear", nodes.input(codes), nodes.constant(1.0), nodes.input(zero), axis=axis))


_OF_CODES = {  # quantized operator -> the one on numbers
    "QLinearSigmoid": "Sigmoid", "QLinearLeakyRelu": "LeakyRelu", "QLinearSoftmax": "Softmax",
    "QLinearReduceMean": "ReduceMean", "QLinearGlobalAveragePool": "GlobalAveragePool", "QLinearAveragePool": "AveragePool",
}  # fmt: skip


@_rule(MICROSOFT, *_OF_CODES)
def _on_codes(nodes: _Nodes) -> None:
    x = nodes.add("DequantizeLinear", *nodes.node.input[:3])
    last_channels = bool(nodes.attribute("channels_last"))
    x = nodes.add("Transpose", x, perm=[0, 3, 1, 2]) if last_channels else x
    y = nodes.add(_OF_CODES[nodes.node.op_type], x, **nodes.attributes("channels_last", "opset"))
    y = nodes.add("Transpose", y, perm=[0, 2, 3, 1]) if last_channels else y
    nodes.add("QuantizeLinear", y, *nodes.node.input[3:5], into=nodes.node.output[0])


@_rule(MICROSOFT, "QLinearConcat")
def _quantized_concat(nodes: _Nodes) -> None:
    names = nodes.node.input
    parts = [nodes.add("DequantizeLinear", *names[k : k + 3]) for k in range(2, len(names), 3)]
    y = nodes.add("Concat", *parts, axis=nodes.attribute("axis"))
    nodes.add("QuantizeLinear", y, *names[:2], into=nodes.node.output[0])


@_rule(MICROSOFT, "QGemm")
def _quantized_gemm(nodes: _Nodes) -> None:
    a = _centered(nodes, 0, 2)
    b = nodes.add("DequantizeLinear", *nodes.node.input[3:6], axis=0 if nodes.attribute("transB") else 1)
    y = nodes.add("Gemm", a, b, **nodes.attributes("alpha"))
    scale = nodes.input(1)
    if nodes.attribute("alpha", 1.0) != 1.0:
        scale = nodes.add("Mul", scale, nodes.constant(nodes.attribute("alpha")))
    scales = (scale, nodes.input(4), nodes.input(7), nodes.input(8))
    nodes.add("Requantize", y, *scales, nodes.input(6), axis=-1, into=nodes.node.output[0])


@_rule(MICROSOFT, "QuantizeLinear", "DequantizeLinear", "QLinearAdd", "QLinearMul")
def _without_its_domain(nodes: _Nodes) -> None:
    nodes.add(nodes.node.op_type, *nodes.node.input, **nodes.attributes(), into=nodes.node.output[0])


@_rule(MICROSOFT, "MatMulIntegerToFloat")
def _product_to_float(nodes: _Nodes) -> None:
    a = nodes.add("DequantizeLinear", nodes.input(0), nodes.input(2), nodes.input(4))
    _product_with(nodes, a, weight=(nodes.input(1), nodes.input(3), nodes.input(5)), bias=nodes.input(6))


@_rule(MICROSOFT, "DynamicQuantizeMatMul")
def _dynamic_product(nodes: _Nodes) -> None:
    codes, scale, zero = nodes.add("DynamicQuantizeLinear", nodes.input(0), count=3)
    a = nodes.add("DequantizeLinear", codes, scale, zero)
    _product_with(nodes, a, weight=(nodes.input(1), nodes.input(2), nodes.input(3)), bias=nodes.input(4))


def _product_with(nodes: _Nodes, a: str, weight: tuple[str, str, str], bias: str) -> None:
    b, last = nodes.add("DequantizeLinear", *weight, axis=-1), nodes.node.output[0]
    y = nodes.add("MatMul", a, b, into="" if bias else last)
    if bias:
        nodes.add("Add", y, bias, into=last)


@_rule(MICROSOFT, "FusedMatMul", "TransposeMatMul")
def _fused_product(nodes: _Nodes) -> None:
    operands = [nodes.input(0), nodes.input(1)]
    if nodes.attribute("transBatchA", 0) or nodes.attribute("transBatchB", 0):
        nodes.made.append(nodes.node)
        return
    factor = nodes.attribute("alpha", 1.0)
    for k, name in enumerate(("transA", "transB")):
        if nodes.attribute(name, 0):
            operands[k] = nodes.add("SwapLastAxes", operands[k])
    last = nodes.node.output[0]
    y = nodes.add("MatMul", *operands, into=last if factor == 1.0 else "")
    if factor != 1.0:
        nodes.add("Mul", y, nodes.constant(factor), into=last)


def _activated(nodes: _Nodes, y: str) -> None:
    """Apply the activation that an operator has fused."""
    kind, last = nodes.attribute("activation", ""), nodes.node.output[0]
    numbers = nodes.attribute("activation_params", ())
    names = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Elu": ("alpha",), "ThresholdedRelu": ("alpha",)}
    own = {name: nodes.attribute(f"activation_{name}") for name in ("alpha", "beta", "gamma")}
    given = {name: value for name, value in own.items() if value is not None} or dict(
        zip(names.get(kind, ()), numbers, strict=False)
    )
    if kind == "Clip":
        nodes.add("Clip", y, *(nodes.constant(number) for number in numbers), into=last)
    else:
        nodes.add(kind or "Identity", y, into=last, **given)


_ACTIVATION = (
    "activation", "activation_params", "activation_alpha", "activation_beta", "activation_gamma", "activation_axis",
)  # fmt: skip


@_rule(MICROSOFT, "FusedConv")
def _fused_convolution(nodes: _Nodes) -> None:
    y = nodes.add("Conv", *nodes.node.input[:3], **nodes.attributes(*_ACTIVATION))
    if nodes.input(3):
        y = nodes.add("Add", y, nodes.input(3))
    _activated(nodes, y)


@_rule(MICROSOFT, "FusedGemm")
def _fused_gemm(nodes: _Nodes) -> None:
    _activated(nodes, nodes.add("Gemm", *nodes.node.input, **nodes.attributes(*_ACTIVATION)))


@_rule(MICROSOFT, "Gelu", "BiasGelu")
def _gelu(nodes: _Nodes) -> None:
    x = nodes.add("Add", nodes.input(0), nodes.input(1)) if nodes.input(1) else nodes.input(0)
    nodes.add("Gelu", x, approximate="none", into=nodes.node.output[0])


@_rule(MICROSOFT, "FastGelu")
def _fast_gelu(nodes: _Nodes) -> None:
    x = nodes.add("Add", nodes.input(0), nodes.input(1)) if nodes.input(1) else nodes.input(0)
    nodes.add("Gelu", x, approximate="tanh", into=nodes.node.output[0])


@_rule(MICROSOFT, "QuickGelu")
def _quick_gelu(nodes: _Nodes) -> None:
    factor = nodes.attribute("alpha", 1.702)
    gate = nodes.add("Sigmoid", nodes.add("Mul", nodes.input(0), nodes.constant(factor)))
    nodes.add("Mul", nodes.input(0), gate, into=nodes.node.output[0])


@_rule("", "SimplifiedLayerNormalization")
@_rule(MICROSOFT, "SimplifiedLayerNormalization")
def _simplified_norm(nodes: _Nodes) -> None:
    attributes = {"axis": nodes.attribute("axis", -1), "epsilon": nodes.attribute("epsilon", 1e-5)}
    nodes.add("RMSNormalization", *nodes.node.input[:2], into=nodes.node.output[0], **attributes)


@_rule(MICROSOFT, "SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
def _skip_norm(nodes: _Nodes) -> None:
    """The norm of a sum; inputs are x, skip, scale, then a shift unless simplified, then a bias of the sum."""
    simplified = nodes.node.op_type.startswith("SkipSimplified")
    shift, bias = ("", nodes.input(3)) if simplified else (nodes.input(3), nodes.input(4))
    total_name = nodes.node.output[3] if len(nodes.node.output) > 3 else ""  # noqa: PLR2004 (the sum is the fourth output)
    total = nodes.add("Add", nodes.input(0), nodes.input(1), into="" if bias else total_name)
    if bias:
        total = nodes.add("Add", total, bias, into=total_name)
    kind, last = "RMSNormalization" if simplified else "LayerNormalization", nodes.node.output[0]
    nodes.add(kind, total, nodes.input(2), shift, axis=-1, epsilon=nodes.attribute("epsilon", 1e-12), into=last)


@_rule(MICROSOFT, "BiasAdd")
def _bias_and_skip(nodes: _Nodes) -> None:
    total = nodes.add("Add", nodes.input(0), nodes.input(1))
    nodes.add("Add", total, nodes.input(2), into=nodes.node.output[0])


@_rule(MICROSOFT, "EmbedLayerNormalization")
def _embeddings(nodes: _Nodes) -> None:
    """The norm of the sum of embeddings of words, positions and segments; positions are counted unless they are given."""
    words, segments = nodes.input(0), nodes.input(1)
    if any(nodes.node.output[2:]):
        nodes.made.append(nodes.node)
        return
    if any(nodes.node.output[1:]) and nodes.input(7):
        axes = nodes.constant([1], np.int64)
        nodes.add("ReduceSum", nodes.input(7), axes, keepdims=0, into=nodes.node.output[1])
    elif any(nodes.node.output[1:]):
        count = nodes.add("Shape", words, start=0, end=1)
        none = onnx.numpy_helper.from_array(np.zeros(1, np.int32))
        nodes.add("ConstantOfShape", count, value=none, into=nodes.node.output[1])
    total = nodes.add("Gather", nodes.input(2), words, axis=0)
    zero, one = nodes.constant(0, np.int64), nodes.constant(1, np.int64)
    length = nodes.add("Gather", nodes.add("Shape", words), one, axis=0)
    positions = nodes.input(8) or nodes.add("Range", zero, length, one)
    total = nodes.add("Add", total, nodes.add("Gather", nodes.input(3), positions, axis=0))
    if segments and nodes.input(4):
        total = nodes.add("Add", total, nodes.add("Gather", nodes.input(4), segments, axis=0))
    epsilon = nodes.attribute("epsilon", 1e-12)
    nodes.add("LayerNormalization", total, nodes.input(5), nodes.input(6), axis=-1, epsilon=epsilon, into=nodes.node.output[0])


@operator("SwapLastAxes")
def swapped(_node: Node, x: Tensor) -> Tensor:
    """Used by rules above; it is no operator of the standard."""
    return x.transpose(-1, -2)
