"""Changes of an exported graph after which its runtimes compute with integers from one kernel to the next.

Integer kernels are made of an operator between DequantizeLinear and QuantizeLinear. None of these changes alters a value,
except that a mean over all positions may differ in its last bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, helper

from mirabelle.runtime.initializers import StoredArrays

Array = npt.NDArray[np.generic]
_MOVING = (
    "Slice",
    "Pad",
    "MaxPool",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
)  # results are elements, or zeros
_WITH_ZERO_POINT = 3  # inputs of DequantizeLinear


def keep_integers(graph: GraphProto) -> None:
    """Change a graph with QuantizeLinear and DequantizeLinear, in place."""
    if not any(node.op_type == "QuantizeLinear" for node in graph.node):
        return
    _drop_idle_relus(graph)
    _take_in_pads(graph)
    _pool_for_means(graph)
    _round_once(graph)
    _round_what_is_moved(graph)
    _pad_codes(graph)


class _Values:
    """Who makes and who reads the values of a graph."""

    def __init__(self, graph: GraphProto) -> None:
        self.constants = StoredArrays(graph)
        self.makers = {output: node for node in graph.node for output in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.given = {value.name for value in graph.output}

    def rounded(self, name: str) -> NodeProto | None:
        """The DequantizeLinear that makes a value from codes of QuantizeLinear, with one scale for the tensor."""
        node = self.makers.get(name)
        if node is None or node.op_type != "DequantizeLinear" or len(node.input) < _WITH_ZERO_POINT:
            return None
        source = self.makers.get(node.input[0])
        single = node.input[1] in self.constants and self.constants[node.input[1]].ndim == 0
        return node if source is not None and source.op_type == "QuantizeLinear" and single else None

    def only_reader(self, name: str, kind: str) -> NodeProto | None:
        """The node that alone reads a value, if it is of a kind."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and readers[0].op_type == kind and name not in self.given else None

    def same_levels(self, one: NodeProto, other: NodeProto) -> bool:
        """Whether two nodes that round or read codes have equal scales and zero points."""
        pairs = list(zip(one.input[1:], other.input[1:], strict=False))
        known = all(name in self.constants for pair in pairs for name in pair)
        alike = len(one.input) == len(other.input) and known
        return alike and all(
            self.constants[a].dtype == self.constants[b].dtype and np.array_equal(self.constants[a], self.constants[b])
            for a, b in pairs
        )


def _round_once(graph: GraphProto) -> None:
    """Drop the rounding of values that are rounded to the same levels already, and what nothing reads then."""
    values = _Values(graph)
    for node in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        before = values.rounded(node.input[0])
        if before is not None and values.same_levels(before, node):
            for reader in values.readers.get(node.output[0], []):
                _read(reader, node.output[0], before.input[0])
            graph.node.remove(node)
    read = {name for node in graph.node for name in node.input} | values.given
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear" and node.output[0] not in read]:
        graph.node.remove(node)


def _round_what_is_moved(graph: GraphProto) -> None:
    """Round what operators move of rounded values to the same levels, which changes nothing and tells that these are codes."""
    for node in [node for node in graph.node if node.op_type in _MOVING]:
        values = _Values(graph)
        before = values.rounded(node.input[0])
        readers = values.readers.get(node.output[0], [])
        zeros = node.op_type != "Pad" or _sides(node, values.constants, anywhere=True) is not None
        idle = node.output[0] in values.given or not readers or all(reader.op_type == "QuantizeLinear" for reader in readers)
        if before is not None and zeros and not idle:
            _insert_rounding(graph, node, before, readers)


def _pad_codes(graph: GraphProto) -> None:
    """Let zero padding between values of the same levels pad their codes, for which runtimes have no rule of their own."""
    values = _Values(graph)
    for node in [node for node in graph.node if node.op_type == "Pad"]:
        before, after = values.rounded(node.input[0]), values.only_reader(node.output[0], "QuantizeLinear")
        if before is None or after is None or not values.same_levels(before, after):
            continue
        pads = [before.input[0], node.input[1], before.input[2], *node.input[3:]]
        del node.input[:]
        node.input.extend(pads)
        node.output[0] = after.output[0]
        graph.node.remove(after)


def _insert_rounding(graph: GraphProto, node: NodeProto, like: NodeProto, readers: list[NodeProto]) -> None:
    """Round the result of a node to the levels of another one for all its readers."""
    result = node.output[0]
    codes, rounded = f"{result}_codes", f"{result}_rounded"
    pair = [
        helper.make_node("QuantizeLinear", [result, *like.input[1:]], [codes]),
        helper.make_node("DequantizeLinear", [codes, *like.input[1:]], [rounded]),
    ]
    for reader in readers:
        _read(reader, result, rounded)
    position = list(graph.node).index(node)
    for k, one in enumerate(pair, start=1):
        one.metadata_props.extend(node.metadata_props)
        graph.node.insert(position + k, one)


def _pool_for_means(graph: GraphProto) -> None:
    """Write a mean over all positions of rounded values as GlobalAveragePool, which has an integer kernel."""
    values = _Values(graph)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    for node in [node for node in graph.node if node.op_type == "ReduceMean" and len(node.input) > 1]:
        rank, axes = ranks.get(node.input[0], 0), values.constants.get(node.input[1])
        after = values.only_reader(node.output[0], "QuantizeLinear")
        if rank < _WITH_ZERO_POINT or axes is None or after is None or values.rounded(node.input[0]) is None:
            continue
        own = {attribute.name: attribute.i for attribute in node.attribute}
        if sorted(int(axis) % rank for axis in axes.flat) != list(range(2, rank)):
            continue
        result = node.output[0]
        if not own.get("keepdims", 1):
            squeeze = helper.make_node("Squeeze", [f"{result}_pooled", node.input[1]], [result])
            squeeze.metadata_props.extend(node.metadata_props)
            position = list(graph.node).index(node) + 1
            graph.node.insert(position, squeeze)  # a copy of it
            node.output[0] = f"{result}_pooled"
            _insert_rounding(graph, node, after, [graph.node[position]])
        del node.input[1:], node.attribute[:]
        node.op_type = "GlobalAveragePool"


def _read(node: NodeProto, old: str, new: str) -> None:
    for k, name in enumerate(node.input):
        if name == old:
            node.input[k] = new


def _drop_idle_relus(graph: GraphProto) -> None:
    """Remove every ReLU and Clip behind codes of which no value lies outside of its limits."""
    values = _Values(graph)
    for node in [node for node in graph.node if node.op_type in ("Relu", "Clip") and node.output[0] not in values.given]:
        source = values.rounded(node.input[0])
        limits = (
            [values.constants.get(name) for name in node.input[1:]]
            if node.op_type == "Clip"
            else [np.zeros(()), np.array(np.inf)]
        )
        if source is None or len(limits) != len(("low", "high")) or any(limit is None for limit in limits):
            continue
        scale, zero = (values.constants[name] for name in source.input[1:3])
        codes = np.array([np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max], np.float32) - zero.astype(np.float32)
        low, high = codes * scale.astype(np.float32)
        if limits[0] <= low and high <= limits[1]:
            for reader in graph.node:
                _read(reader, node.output[0], node.input[0])
            graph.node.remove(node)


def _take_in_pads(graph: GraphProto) -> None:
    """Move zero padding before quantization into the convolution; codes represent 0 exactly, so the result is the same."""
    constants = StoredArrays(graph)
    sources = {node.output[0]: node for node in graph.node}
    read = Counter(name for node in graph.node for name in node.input) + Counter(value.name for value in graph.output)
    for conv in [node for node in graph.node if node.op_type == "Conv"]:
        chain, name = [], conv.input[0]
        for kind in ("DequantizeLinear", "QuantizeLinear", "Pad"):
            node = sources.get(name)
            if node is None or node.op_type != kind or read[name] > 1:
                break
            chain.append(node)
            name = node.input[0]
        if len(chain) < 3 or (sides := _sides(chain[2], constants)) is None:  # noqa: PLR2004 (all of them)
            continue
        own = {attribute.name: attribute for attribute in conv.attribute}
        given = list(own["pads"].ints) if "pads" in own else [0] * len(sides)
        if "pads" in own:
            conv.attribute.remove(own["pads"])
        conv.attribute.append(helper.make_attribute("pads", [old + new for old, new in zip(given, sides, strict=True)]))
        chain[1].input[0] = chain[2].input[0]
        graph.node.remove(chain[2])


def _sides(pad: NodeProto, constants: Mapping[str, Array], *, anywhere: bool = False) -> list[int] | None:
    """The zero padding of a Pad node before and after each spatial axis, or `anywhere`; None if it does anything else."""
    mode = next((attribute.s for attribute in pad.attribute if attribute.name == "mode"), b"constant")
    names = [*pad.input[1:], "", ""]
    zeros = not names[1] or (names[1] in constants and not constants[names[1]].any())
    if mode != b"constant" or names[0] not in constants or names[2] or not zeros:
        return None
    pads: list[int] = constants[names[0]].tolist()
    if anywhere:
        return pads
    half = len(pads) // 2
    around = [*pads[:2], *pads[half : half + 2]]  # padding of batch and channels
    return None if any(around) or min(pads) < 0 else [*pads[2:half], *pads[half + 2 :]]
