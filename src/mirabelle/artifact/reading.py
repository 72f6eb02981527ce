"""Read an ONNX model from a path given by the user. No code is run, and no file outside of the model's folder is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from onnx import ModelProto

from mirabelle.artifact.mira import unpack
from mirabelle.errors import UserError
from mirabelle.run import files
from mirabelle.runtime.external_data import MOST_BYTES, is_outside, read_onnx, tensors_of_model
from mirabelle.runtime.runtime import default_runtime, runtimes_present
from mirabelle.runtime.skeleton import without_data
from mirabelle.sources.missing import missing


def onnx_of(path: str | Path) -> bytes:
    """The ONNX model in an .onnx file, a .mira file, or the folder of a run; tensors in files beside it are read into it.

    Raises:
        UserError: E130 if the path does not exist, E121 if the file is larger than an ONNX model can be, E141 if it is damaged
            or, in the folder of a run, is not the file that the run wrote, E142 if its version is newer, E143 if it is another
            kind of file, or stores tensors outside of its folder, E130 if a file of tensors is missing. The message begins with
            the file's name.
    """
    path = file_of(path)
    if path.stat().st_size >= MOST_BYTES:
        raise UserError(
            "E121", f"{path} has 2 GiB or more, but an ONNX model in one file must be smaller", "give a smaller model"
        )
    _check_digest(path)
    try:
        onnx = unpack(path.read_bytes()) if path.suffix == ".mira" else read_onnx(path)
        light = without_data(onnx)
        if light is None:
            model_of(onnx)
        else:
            checked(light)
    except UserError as error:
        raise error.at(str(path)) from None
    return onnx


def _check_digest(path: Path) -> None:
    """Raise E141 if the file lies beside the report of its run, and does not have the digest that the report names."""
    digests = _reported(path.parent, "digests")
    if path.name in digests and digests[path.name] != files.digest_of_bytes(path.read_bytes()):
        raise UserError("E141", f"{path} is damaged, or not the file that the run wrote", "run the same command again")


def _reported(folder: Path, *keys: str) -> dict[str, Any]:
    """A table in the report of a run; an empty one without a report, or if it is damaged: then nothing is known."""
    report = folder / "report.json"
    try:
        found = files.read_json(report) if report.is_file() else {}
        for key in keys:
            found = found.get(key) or {}
    except (UserError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


def runtime_of(path: str | Path) -> str:
    """The runtime in which the run has judged the model; ONNX Runtime for another file, or if that runtime is not here."""
    name = str(_reported(file_of(path).parent, "end", "latency_ms").get("runtime", ""))
    return name if name in runtimes_present() else default_runtime().describe().name


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
        raise missing("file", str(path), path, "check the path")
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
    return checked(model)


def checked(model: ModelProto) -> ModelProto:
    """The model, all of whose tensors are stored in the same file.

    Raises:
        UserError: E141 if it is no model, E143 if it stores tensors in other files.
    """
    if not model.ir_version or not model.graph.output:
        raise UserError("E141", "this is not an ONNX model: it has no version or no output", "give an .onnx file")
    for tensor in tensors_of_model(model):
        if is_outside(tensor):
            raise UserError(
                "E143",
                f'tensor "{tensor.name}" is stored in another file (external data), which is not read',
                "save the model as one file",
            )
    return model
