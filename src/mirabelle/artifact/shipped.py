"""The ONNX model in a file that was shipped: .onnx, .mira, or the folder of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

from mirabelle.artifact.mira import unpack
from mirabelle.errors import UserError

_IN_A_RUN = ("model.onnx", "model.mira")


def read_shipped(path: Path) -> ModelProto:
    """The model, all of which lies in the one file.

    Raises:
        UserError: E130 when it is not there; E141 damaged, E142 newer; E143 when it is of another kind, or names other files.
    """
    if path.is_dir():
        place = next((path / name for name in _IN_A_RUN if (path / name).is_file()), None)
        if place is None:
            raise UserError("E130", f"no model.onnx in {path}", "give the folder of a finished run, or a file")
        return read_shipped(place)
    if not path.is_file():
        raise UserError("E130", f"no file at {path}", "check the path")
    if path.suffix not in (".onnx", ".mira"):
        raise UserError("E143", f"{path} is neither .onnx nor .mira", "give one of these, or the folder of a run")
    data = path.read_bytes()
    try:
        model: ModelProto = ModelProto.FromString(unpack(data) if path.suffix == ".mira" else data)
    except DecodeError as error:
        raise UserError("E141", f"{path} is no ONNX model: {error}", "fetch it again") from error
    except UserError as error:
        raise error.at(str(path)) from None
    if not model.graph.node or not model.graph.output:
        raise UserError("E141", f"{path} is no ONNX model: its graph is empty", "fetch it again")
    for tensor in _tensors(model):
        if tensor.external_data or tensor.data_location == TensorProto.EXTERNAL:
            message = f"{path} keeps tensors in other files, which are not read"
            raise UserError("E143", message, "save the model as one file")
    return model


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor in it, those of subgraphs and functions included."""
    yield from _in_graph(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _in_attributes(node.attribute)
        yield from _in_attributes(function.attribute_proto)


def _in_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _in_attributes(node.attribute)


def _in_attributes(attributes: Iterator[AttributeProto]) -> Iterator[TensorProto]:
    for attribute in attributes:
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _in_graph(graph)
