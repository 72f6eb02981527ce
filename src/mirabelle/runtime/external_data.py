"""ONNX models whose tensors are stored in files beside the model: they are read into it, and nothing outside of its folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from mirabelle.errors import UserError
from mirabelle.runtime.skeleton import without_data

MOST_BYTES = 1 << 31  # size limit of a protobuf message, and so of an ONNX model in one file


def read_model(path: Path) -> tuple[ModelProto, bytes]:
    """(the model in an .onnx file, its bytes), with tensors of other files in its folder read into it.

    Raises:
        UserError: E121 if the model is larger than one file can be; E130 if a file of tensors is missing; E141 if the file is
            no ONNX model, or tensors do not lie in theirs; E143 if it names a file outside of its folder.
    """
    if path.stat().st_size >= MOST_BYTES:
        raise _too_large(path)
    data = path.read_bytes()
    try:
        model: ModelProto = ModelProto.FromString(data)
    except DecodeError as error:
        raise UserError("E141", f"this is not an ONNX model, or it is damaged: {error}", "fetch it again") from None
    outside = [tensor for tensor in tensors_of_model(model) if is_outside(tensor)]
    if not outside:
        return model, data
    if sum(map(_length, outside)) + len(data) >= MOST_BYTES:
        raise _too_large(path)
    for tensor in outside:
        _bring_in(tensor, path.parent)
    return model, model.SerializeToString(deterministic=True)


def read_onnx(path: Path) -> bytes:
    """The bytes of the model in an .onnx file, with tensors of other files in its folder read into it.

    Raises:
        UserError: as `read_model`.
    """
    if path.stat().st_size >= MOST_BYTES:
        raise _too_large(path)
    data = path.read_bytes()
    model = without_data(data)
    if model is None or any(map(is_outside, tensors_of_model(model))):
        return read_model(path)[1]
    return data


def is_outside(tensor: TensorProto) -> bool:
    """Whether the values of a tensor are in another file."""
    return bool(tensor.external_data) or tensor.data_location != TensorProto.DEFAULT


def tensors_of_model(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor in the model: initializers, dense and sparse, and those in attributes, subgraphs and functions."""
    yield from _in_graph(model.graph)
    for function in model.functions:
        yield from _in_nodes(function.node)


def _bring_in(tensor: TensorProto, folder: Path) -> None:
    """Read the values of a tensor from its file."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path = _inside(folder, entries.get("location", ""), tensor.name)
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or _length(tensor))
    except ValueError:
        raise UserError("E141", f'tensor "{tensor.name}" has no valid place in {path.name}', "export it again") from None
    if offset < 0 or length != _length(tensor) or offset + length > path.stat().st_size:
        message = (
            f'tensor "{tensor.name}" has {_length(tensor)} bytes, which are not all in {path.name} ({path.stat().st_size})'
        )
        raise UserError("E141", message, "fetch both files again")
    with path.open("rb") as file:
        file.seek(offset)
        tensor.raw_data = file.read(length)
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def _inside(folder: Path, location: str, name: str) -> Path:
    """The path of a file of tensors, which must lie in the folder of the model, also behind links."""
    pure = (PurePosixPath(location), PureWindowsPath(location))
    outside = not location or any(one.is_absolute() or one.drive or ".." in one.parts for one in pure)
    path = folder / location
    if outside or not path.resolve().is_relative_to(folder.resolve()):
        message = f'tensor "{name}" is stored in another file, "{location}", not in the folder of the model, and is not read'
        raise UserError("E143", message, "put the file beside the model, or save the model as one file")
    if not path.is_file():
        raise UserError("E130", f'the values of the tensor "{name}" are in {path}, which is missing', "put it beside the model")
    return path


def _length(tensor: TensorProto) -> int:
    """The bytes of a tensor's values."""
    if tensor.data_type in (TensorProto.UNDEFINED, TensorProto.STRING) or any(size < 0 for size in tensor.dims):
        raise UserError("E141", f'tensor "{tensor.name}" cannot be stored in another file', "export it again")
    try:
        name = TensorProto.DataType.Name(tensor.data_type)
        whole: int = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (ValueError, KeyError):
        raise UserError(
            "E141", f'tensor "{tensor.name}" has type {tensor.data_type}, which is unknown', "export it again"
        ) from None
    count: int = prod(tensor.dims)
    bits = next((bits for ending, bits in (("INT4", 4), ("FLOAT4E2M1", 4), ("INT2", 2)) if name.endswith(ending)), None)
    return (count * bits + 7) // 8 if bits else count * whole


def _too_large(path: Path) -> UserError:
    message = f"{path} has 2 GiB or more, but an ONNX model in one file must be smaller"
    return UserError("E121", message, "give a smaller model")


def _in_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _in_nodes(graph.node)


def _in_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
                *attribute.sparse_tensors,
            ):
                yield from (sparse.values, sparse.indices)
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _in_graph(graph)
