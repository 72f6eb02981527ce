"""A shipped model on raw inputs: its own preprocessing, ONNX Runtime, its own labels."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto, TensorProto, helper

from mirabelle.artifact.reading import model_of, onnx_of
from mirabelle.errors import UserError
from mirabelle.preprocessing import Image, Preprocessing, Table, from_json
from mirabelle.preprocessing.image import SUFFIXES
from mirabelle.preprocessing.table import read_rows
from mirabelle.runtime.onnxruntime import Session

Array = npt.NDArray[Any]
_BATCH = 64


@dataclass(frozen=True)
class Choice:
    """A class with its probability in [0, 1]."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What the model makes of one input: the likeliest classes, best first, or its outputs where it has no labels."""

    input: str
    top: tuple[Choice, ...]
    outputs: Any

    def to_data(self) -> dict[str, Any]:
        if not self.top:
            return {"input": self.input, "outputs": self.outputs}
        return {"input": self.input, **vars(self.top[0]), "top": [vars(choice) for choice in self.top]}


class Predictor:
    """A model from an .onnx or .mira file or the folder of a run, ready to take inputs.

    Args:
        path: the file or folder.

    Raises:
        UserError: E130, E141, E142, E143 as the file fails; E121 when the model takes more than one input.
    """

    def __init__(self, path: Path) -> None:
        model = model_of(onnx_of(path))
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        self.path = path
        output = model.graph.output[0].name
        self._gives_probabilities = any(node.op_type == "Softmax" and output in node.output for node in model.graph.node)
        try:
            self.labels = _labels(metadata.get("labels", "[]"))
            self.preprocessing = from_json(metadata["preprocessing"]) if "preprocessing" in metadata else None
            self.signature = _signature(model, self.preprocessing)
            self._session = Session(model.SerializeToString(), torch.get_num_threads())
        except UserError as error:
            raise error.at(str(path)) from None

    def __call__(self, inputs: Sequence[Path], top: int = 3) -> list[Prediction]:
        """Predictions for image files, folders of images, .npy arrays (a sample or a batch, already preprocessed), .csv tables.

        Args:
            inputs: files and folders, of which there may be several kinds.
            top: how many classes to name.

        Raises:
            UserError: E130 what is missing, E131 what the model cannot take, E143 a file of pickled objects or unknown kind.
        """
        found: list[Prediction] = []
        samples = itertools.chain.from_iterable(self._samples(path) for path in inputs)
        while chunk := list(itertools.islice(samples, self.signature.most)):
            outputs = self._outputs(np.stack([sample for _, sample in chunk]))
            names = [name for name, _ in chunk]
            found += [self._prediction(name, output, top) for name, output in zip(names, outputs, strict=True)]
        return found

    def _outputs(self, batch: Array) -> Array:
        try:
            outputs: Array = self._session.run({self._session.input_names[0]: batch})[0]
        except Exception as error:
            message = f"{self.path} fails on inputs of {batch.dtype} {batch.shape}: {str(error).splitlines()[0]}"
            raise UserError("E121", message, "see that it is the right model for these inputs") from error
        if outputs.shape[:1] != batch.shape[:1] or not np.isfinite(outputs).all():
            message = f"{self.path} gives outputs that are not finite, or not one for each input"
            raise UserError("E121", message, "see that it is the right model for these inputs")
        return outputs

    def _prediction(self, name: str, output: Array, top: int) -> Prediction:
        if not self.labels:
            return Prediction(name, (), output.tolist())
        if output.shape != (len(self.labels),):
            message = f"{self.path} gives outputs of shape {output.shape} for {len(self.labels)} labels"
            raise UserError("E141", message, "fetch the file again")
        shares = output if self._gives_probabilities else _softmax(output.astype(np.float64))
        order = np.argsort(-shares, kind="stable")[:top].tolist()
        return Prediction(name, tuple(Choice(self.labels[k], k, float(shares[k])) for k in order), None)

    def _samples(self, path: Path) -> Iterator[tuple[str, Array]]:
        """(name, model input) of everything in a file or folder."""
        suffix = path.suffix.lower()
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not files:
                raise UserError("E130", f"no image in {path}", f"give a folder with {', '.join(SUFFIXES)} files")
            image = self._image(path)
            yield from ((str(file), image(file)) for file in files)
        elif not path.exists():
            raise UserError("E130", f"no input at {path}", "check the path")
        elif suffix == ".npy":
            yield from self._array_samples(path)
        elif suffix == ".csv":
            rows = read_rows(path)
            names = (f"{path}:{line}" for line in rows.lines)
            yield from zip(names, self._table(path)(rows), strict=True)
        elif suffix in SUFFIXES:
            yield str(path), self._image(path)(path)
        else:
            raise UserError("E143", f"{path} is of no kind that is read", "give an image, a .npy, a .csv or a folder of images")

    def _image(self, path: Path) -> Image:
        if isinstance(self.preprocessing, Image):
            return self.preprocessing
        raise self._refused(path, "an image")

    def _table(self, path: Path) -> Table:
        if isinstance(self.preprocessing, Table):
            return self.preprocessing
        raise self._refused(path, "rows of a table")

    def _refused(self, path: Path, what: str) -> UserError:
        if isinstance(self.preprocessing, Table):
            columns = ", ".join(self.preprocessing.columns)
            return UserError("E131", f"{self.path} takes rows of a table, not {path}", f"give a .csv with {columns}")
        if isinstance(self.preprocessing, Image):
            return UserError("E131", f"{self.path} takes images, not {path}", "give an image or a folder of images")
        message = f"{self.path} holds no preprocessing, so it cannot take {what}: {path}"
        return UserError("E131", message, f"give a .npy, already preprocessed: {self.signature}")

    def _array_samples(self, path: Path) -> Iterable[tuple[str, Array]]:
        values = _read_array(path)
        signature, given = self.signature, f"{path} holds {values.dtype}, shape {values.shape}"
        one = signature.takes(values.shape)
        if values.dtype != signature.dtype or not (one or (values.ndim and signature.takes(values.shape[1:]))):
            raise UserError("E131", given, f"the model takes {signature}")
        if not values.size or (values.dtype.kind == "f" and not np.isfinite(values).all()):
            raise UserError("E131", f"{given}; it is empty, or holds NaN or infinite values", "give finite numbers")
        return [(str(path), values)] if one else ((f"{path}[{k}]", sample) for k, sample in enumerate(values))


def _softmax(scores: Array) -> Array:
    powers: Array = np.exp(scores - scores.max())
    shares: Array = powers / powers.sum()
    return shares


@dataclass(frozen=True)
class Signature:
    """What the model takes: the type and shape of one sample (None: any size), and how many samples at once at most."""

    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    most: int

    def takes(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self.shape) and all(due in (None, size) for due, size in zip(self.shape, shape, strict=True))

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        one = f"({sizes},)" if len(self.shape) == 1 else f"({sizes})"
        return f"{self.dtype}, shape {one} for one sample or (batch, {sizes}) for several"


def _signature(model: ModelProto, preprocessing: Preprocessing | None) -> Signature:
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise UserError("E121", f"the model takes {len(inputs)} inputs ({names})", "predict serves models of one input")
    kind = inputs[0].type.tensor_type
    if not kind.shape.dim or kind.elem_type == TensorProto.UNDEFINED:
        raise UserError("E121", "the model does not say which inputs it takes", "export it again")
    batch, *sizes = [dimension.dim_value if dimension.HasField("dim_value") else None for dimension in kind.shape.dim]
    if batch not in (None, 1):
        raise UserError("E121", f"the model takes {batch} samples at once, no others", "export it with a free batch axis")
    most = 1 if batch or None in sizes else _BATCH  # samples of different sizes cannot be stacked
    signature = Signature(_dtype(kind.elem_type), tuple(sizes), most)
    if preprocessing is not None and not (signature.dtype == np.float32 and signature.takes(preprocessing.shape)):
        message = f"the stored preprocessing makes float32 of shape {preprocessing.shape}; the model takes {signature}"
        raise UserError("E141", message, "fetch the file again")
    return signature


def _dtype(code: int) -> np.dtype[Any]:
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(code))
    except KeyError as error:
        raise UserError("E141", f"the model takes values of type {code}, which is not known", "export it again") from error


def _labels(text: str) -> tuple[str, ...]:
    try:
        labels = json.loads(text)
    except (ValueError, RecursionError):
        labels = None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError("E141", "the stored labels are damaged", "fetch the file again")
    return tuple(labels)


def _read_array(path: Path) -> Array:
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError) as error:
        if "allow_pickle" in str(error):
            message = f"{path} holds Python objects (a pickle), which may run code, so it is not read"
            raise UserError("E143", message, "save an array of numbers with numpy.save") from error
        raise UserError("E131", f"{path} is damaged: {error}", "save it again with numpy.save") from error
    if not isinstance(values, np.ndarray):
        raise UserError("E143", f"{path} is an .npz file", "give one array, saved with numpy.save")
    return values
