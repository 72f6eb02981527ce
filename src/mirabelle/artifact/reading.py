"""Read an ONNX model from a path given by the user. No code is run, and no other file is opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from mirabelle.artifact.mira import unpack
from mirabelle.errors import UserError
from mirabelle.run import files

_MOST_BYTES = 1 << 31  # size limit of a protobuf message, and so of an ONNX model


def onnx_of(path: str | Path) -> bytes:
    """The ONNX model in an .onnx file, a .mira file, or the folder of a run.

    Raises:
        UserError: E130 if the path does not exist, E121 if the file is larger than an ONNX model can be, E141 if it is damaged
            or, in the folder of a run, is not the file that the run wrote, E142 if its version is newer, E143 if it is another
            kind of file, or stores tensors in other files. The message begins with the file's name.
    """
    path = file_of(path)
    if path.stat().st_size >= _MOST_BYTES:
        message = f"{path} has 2 GiB or more, but an ONNX model in one file must be smaller"
        raise UserError("E121", message, "give a smaller model")
    data = path.read_bytes()
    _check_digest(path, data)
    try:
        onnx = unpack(data) if path.suffix == ".mira" else data
        model_of(onnx)
    except UserError as error:
        raise error.at(str(path)) from None
    return onnx


def _check_digest(path: Path, data: bytes) -> None:
    """Raise E141 if the file lies beside the report of its run, and does not have the digest that the report names."""
    report = path.parent / "report.json"
    try:
        digests = files.read_json(report).get("digests", {}) if report.is_file() else {}
    except (UserError, AttributeError):  # damaged, or no report: nothing is known of the file
        return
    if digests.get(path.name, files.digest_of_bytes(data)) != files.digest_of_bytes(data):
        raise UserError("E141", f"{path} is damaged, or not the file that the run wrote", "run the same command again")


def file_of(path: str | Path) -> Path:
    """The path of the model file: `path` itself, or model.onnx in the folder of a run.

    Raises:
        UserError: E130 if the path does not exist, E143 if it is another kind of file.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "model.onnx").is_file():
            raise UserError("E130", f"no model.onnx in {path}", "name the folder of a finished run")
        return path / "model.onnx"
    if not path.is_file():
        raise UserError("E130", f"no file at {path}", "check the path")
    if path.suffix not in (".onnx", ".mira"):
        raise UserError("E143", f"{path} is neither .onnx nor .mira", "give an .onnx or .mira file, or the folder of a run")
    return path


def model_of(onnx: bytes) -> ModelProto:
    """The parsed ONNX model, all of whose tensors are stored in the same file.

    Raises:
        UserError: E141 if this is not an ONNX model, E143 if it stores tensors in other files.
    """
    try:
        model: ModelProto = ModelProto.FromString(onnx)
    except DecodeError as error:
        raise UserError("E141", f"this is not an ONNX model, or it is damaged: {error}", "fetch it again") from None
    if not model.ir_version or not model.graph.output:
        raise UserError("E141", "this is not an ONNX model: it has no version or no output", "give an .onnx file")
    for tensor in tensors_of_model(model):
        if tensor.external_data or tensor.data_location != TensorProto.DEFAULT:
            raise UserError(
                "E143",
                f'tensor "{tensor.name}" is stored in another file (external data), which is not read',
                "save the model as one file",
            )
    return model


def tensors_of_model(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor in the model: initializers, dense and sparse, and those in attributes, subgraphs and functions."""
    yield from _in_graph(model.graph)
    for function in model.functions:
        yield from _in_nodes(function.node)


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
