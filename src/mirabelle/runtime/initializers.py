"""The initializers of an ONNX graph: each stored once, as raw bytes, in the order of their use.

Exporters write a tensor that several layers share once per use, some of these copies transposed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mirabelle.numerics.arrays import Array

_TRANSPOSED = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8)
_FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_CODES = {
    "MatMulInteger": (1,),
    "DequantizeLinear": (0, 2),
}  # where nodes that become integer products have codes and zero points
_SAMPLE = 1024  # bytes that are compared before whole tensors are
_WORTH = 1024  # size of a tensor in bytes from which on a node that computes it from another one takes less


class StoredArrays(Mapping[str, Array]):
    """The initializers of a graph by name, each read when it is asked for."""

    def __init__(self, graph: GraphProto) -> None:
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}

    def __getitem__(self, name: str) -> Array:
        array: Array = numpy_helper.to_array(self._tensors[name])
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def store_once(graph: GraphProto) -> None:
    """Let nodes share initializers of equal type and bytes, and matrices that are equal after transposition.

    A transposed matrix, and floating-point numbers in another shape, are computed from the tensor that is used first. Runtimes
    do so once, when they load the file, so it costs no time later. Defaults of inputs, and what subgraphs use, are left alone.
    The unused initializers are not removed.
    """
    alike: dict[object, list[TensorProto]] = defaultdict(list)
    for tensor in _used_by_nodes(graph):
        alike[tensor.data_type, *sorted(tensor.dims)].append(tensor)
    same: dict[str, str] = {}
    transposed: dict[str, str] = {}
    for group in (group for group in alike.values() if len(group) > 1):
        first: dict[object, str] = {}
        for tensor in _alike(group, _sample):
            other = same[tensor.name] = first.setdefault(_key(tensor), tensor.name)
            turned = first.get(_key(tensor, transposed=True)) if other == tensor.name and _is_large_matrix(tensor) else None
            if turned is not None and turned != tensor.name:
                transposed[tensor.name] = turned
    for position, (name, other) in enumerate(transposed.items()):
        graph.node.insert(position, helper.make_node("Transpose", [other], [f"{name}:transposed"], perm=[1, 0]))
    names = {name: f"{other}:transposed" if other in transposed else other for name, other in same.items()}
    _rename(list(graph.node)[len(transposed) :], names)
    _store_shapes_once(graph)


def _store_shapes_once(graph: GraphProto) -> None:
    """Let nodes share large floating-point initializers that differ in their shape alone, such as scales (n,) and (n, 1)."""
    large = [tensor for tensor in _used_by_nodes(graph) if tensor.data_type in _FLOATING and tensor.ByteSize() >= _WORTH]
    first: dict[object, str] = {}
    names: dict[str, str] = {}
    made: list[NodeProto] = []
    for tensor in _alike(large, lambda tensor: (tensor.data_type, _data(tensor)[:_SAMPLE])):
        other = first.setdefault((tensor.data_type, _digest(tensor)), tensor.name)
        if other != tensor.name:
            names[tensor.name], shape = f"{tensor.name}:reshaped", f"{tensor.name}:shape"
            graph.initializer.append(numpy_helper.from_array(np.array(tensor.dims, np.int64), shape))
            made.append(helper.make_node("Reshape", [other, shape], [names[tensor.name]]))
    _rename(graph.node, names)
    for position, node in enumerate(made):
        graph.node.insert(position, node)


def _rename(nodes: Iterable[NodeProto], names: Mapping[str, str]) -> None:
    """Let nodes read other values: name of a value -> name of the one that takes its place."""
    for node in nodes:
        for k, name in enumerate(node.input):
            node.input[k] = names.get(name, name)


def own_zero_points(graph: GraphProto) -> None:
    """Give each use of stored int8 tensors its own zero point; exact integers of ONNX Runtime fail if two uses share one."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    taken: set[str] = set()
    for node in graph.node:
        codes, _, *given = node.input if node.op_type == "DequantizeLinear" else ("", "")
        for name in given if codes in tensors else ():
            if name in taken and name in tensors:
                own = graph.initializer.add()
                own.CopyFrom(tensors[name])
                free = (
                    f"{codes}_zero_point{suffix}" for suffix in itertools.chain([""], (f"_{k}" for k in itertools.count(1)))
                )
                own.name = node.input[-1] = next(new for new in free if new not in taken)
            taken.add(node.input[-1])


def with_own_integer_weights(model: bytes) -> bytes:
    """The model with a copy of an int8 matrix for each further product that uses it.

    ONNX Runtime cannot load a model with exact integers if two of these nodes share their weights.
    """
    proto = ModelProto.FromString(model)
    graph = proto.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    turned = {node.output[0]: node for node in graph.node if node.op_type == "Transpose" and node.input[0] in tensors}
    apart = _dequantized_apart(graph, {*tensors, *turned})
    users: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
    for node in graph.node:
        for place in _CODES.get(node.op_type, ()):
            users[node.input[place]].append((node, place))
    further = [(name, k, *user) for name, found in users.items() for k, user in enumerate(found) if k]
    for name, k, node, place in further:
        stored = turned[name].input[0] if name in turned else name
        if stored in tensors:
            copy = graph.initializer.add()
            copy.CopyFrom(tensors[stored])
            copy.name = node.input[place] = f"{name}:{k}"
            if name in turned:
                node.input[place] += ":transposed"
                graph.node.insert(0, helper.make_node("Transpose", [copy.name], [node.input[place]], perm=[1, 0]))
    data: bytes = proto.SerializeToString()
    return data if further or apart else model


def _dequantized_apart(graph: GraphProto, stored: Collection[str]) -> bool:
    """Let each further reader of dequantized codes dequantize them itself; whether there are any."""
    nodes = list(graph.node)
    sources = {node.output[0]: node for node in nodes if node.op_type == "DequantizeLinear" and node.input[0] in stored}
    read: Counter[str] = Counter()
    added = 0
    for position, node in enumerate(nodes):
        for place, name in enumerate(node.input):
            if name in sources:
                if read[name]:
                    own = NodeProto()
                    own.CopyFrom(sources[name])
                    own.output[0] = node.input[place] = f"{name}:{read[name]}"
                    graph.node.insert(position + added, own)
                    added += 1
                read[name] += 1
    return added > 0


def put_in_order(graph: GraphProto) -> None:
    """Sort the initializers by their first use, remove unused ones, and store each as raw bytes without doc string."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    used = dict.fromkeys(name for node in graph.node for name in _inputs(node) if name in tensors)
    # An output may be an initializer; an initializer with the name of an input is its default value and is kept.
    listed = (*graph.output, *graph.input)
    used.update(dict.fromkeys(value.name for value in listed if value.name in tensors))
    last = {tensor.name: position for position, tensor in enumerate(graph.initializer)}  # of several with one name
    for position in reversed(range(len(graph.initializer))):
        name = graph.initializer[position].name
        if name not in used or last[name] != position:
            del graph.initializer[position]
    place = {name: k for k, name in enumerate(used)}
    graph.initializer.sort(key=lambda tensor: place[tensor.name])
    for tensor in graph.initializer:
        _make_raw(tensor)


def _used_by_nodes(graph: GraphProto) -> list[TensorProto]:
    """The initializers that only the nodes of the graph itself use, in the order of their use; no strings."""
    within = {name for node in graph.node for name in _below(node)} | {value.name for value in graph.input}
    tensors = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type != TensorProto.STRING}
    used = dict.fromkeys(name for node in graph.node for name in node.input)
    return [tensors[name] for name in used if name in tensors and name not in within]


def _key(tensor: TensorProto, *, transposed: bool = False) -> object:
    """Shape and digest of a tensor's values, or of their transpose."""
    if transposed:
        array = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
        return (*array.shape, hashlib.blake2b(array.data).digest())
    return (*tensor.dims, _digest(tensor))


def _alike(tensors: Sequence[TensorProto], sample: Callable[[TensorProto], Hashable]) -> list[TensorProto]:
    """The tensors, in their order, that share their sample with another one."""
    samples = [sample(tensor) for tensor in tensors]
    shared = Counter(samples)
    return [tensor for tensor, own in zip(tensors, samples, strict=True) if shared[own] > 1]


def _digest(tensor: TensorProto) -> bytes:
    return hashlib.blake2b(_data(tensor)).digest()


def _sample(tensor: TensorProto) -> bytes:
    """A few of a tensor's values, which are equal if the tensors, or one and the other's transpose, are equal."""
    if len(tensor.dims) == 2 and tensor.data_type in _TRANSPOSED:  # noqa: PLR2004 (axes)
        return np.ascontiguousarray(numpy_helper.to_array(tensor).diagonal()).tobytes()
    return _data(tensor)[:_SAMPLE]


def _is_large_matrix(tensor: TensorProto) -> bool:
    return tensor.data_type in _TRANSPOSED and len(tensor.dims) == 2 and tensor.ByteSize() >= _WORTH  # noqa: PLR2004 (axes)


def _inputs(node: NodeProto) -> list[str]:
    """All values that a node reads, including those of its subgraphs."""
    return [*node.input, *_below(node)]


def _below(node: NodeProto) -> list[str]:
    """The values that the subgraphs of a node read, and their results."""
    graphs = [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)]
    read = [name for graph in graphs for inner in graph.node for name in _inputs(inner)]
    return [*read, *(value.name for graph in graphs for value in graph.output)]


def _make_raw(tensor: TensorProto) -> None:
    """Store the values of a tensor as raw bytes, in place, in ONNX's packed form for types below 8 bits; strings stay."""
    if tensor.data_type != TensorProto.STRING and not tensor.raw_data:
        tensor.raw_data = _data(tensor)
    kept = {"name", "dims", "data_type", "string_data" if tensor.data_type == TensorProto.STRING else "raw_data"}
    for field, _ in tensor.ListFields():
        if field.name not in kept:
            tensor.ClearField(field.name)
    tensor.DiscardUnknownFields()


def _data(tensor: TensorProto) -> bytes:
    """The values of a tensor as raw bytes."""
    data: bytes = tensor.raw_data or numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
    return data
