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
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from mirabelle.artifact.reading import model_of, onnx_of
from mirabelle.errors import UserError, first_line
from mirabelle.numerics.metrics import ctc_greedy_decode, span_of
from mirabelle.runtime.onnxruntime import Session
from mirabelle.task.preprocessing import Characters, Image, Preprocessing, Sound, Table, Text, from_json, image, sound
from mirabelle.task.preprocessing.table import read_rows
from mirabelle.task.preprocessing.text import TOKENIZER, tokenizer_of

Array = npt.NDArray[Any]
_BATCH = 64
_YES = 0.5  # the least probability of a label that is told


@dataclass(frozen=True)
class Choice:
    """A class with its probability in [0, 1]."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What the model makes of one input: the likeliest classes, best first; without labels its outputs, or the answer found.

    Of several outputs it is those, by name, whether there are labels or not; of sequences without alignment the text; where
    each label is a yes or no of its own, those of probability 0.5 and more.
    """

    input: str
    top: tuple[Choice, ...]
    outputs: Any
    answer: str | None = None
    text: str | None = None
    multi_label: tuple[str, ...] | None = None

    def to_data(self) -> dict[str, Any]:
        for name in ("answer", "text"):
            if getattr(self, name) is not None:
                return {"input": self.input, name: getattr(self, name)}
        if not self.top:
            return {"input": self.input, "outputs": self.outputs}
        first = vars(self.top[0]) if self.multi_label is None else {"labels": list(self.multi_label)}
        return {"input": self.input, **first, "top": [vars(choice) for choice in self.top]}


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
        self._several = metadata.get("decision") == "several"
        output, ending = model.graph.output[0].name, "Sigmoid" if self._several else "Softmax"
        self._gives_probabilities = any(node.op_type == ending and output in node.output for node in model.graph.node)
        try:
            self.labels = _labels(metadata.get("labels", "[]"))
            self.preprocessing = from_json(metadata["preprocessing"]) if "preprocessing" in metadata else None
            self.signature = _signature(model, self.preprocessing)
            if isinstance(self.preprocessing, Characters):
                self.labels = tuple(self.preprocessing.characters)
            if isinstance(self.preprocessing, Text):
                self._tokenizer = tokenizer_of(_folder_of(path) / TOKENIZER, self.preprocessing.tokenizer)
            self._session = Session(model.SerializeToString(), torch.get_num_threads())
        except UserError as error:
            raise error.at(str(path)) from None

    def __call__(self, inputs: Sequence[Path], top: int = 3) -> list[Prediction]:
        """Predictions for images, .npy arrays (a sample or a batch, already preprocessed), .csv tables and lines of .txt files.

        What a language model of characters predicts is the character that follows a line; of a model of sequences without
        alignment, whose first label is "" for nothing, the text of the likeliest path.

        Args:
            inputs: files and folders, of which there may be several kinds; in a .txt pairs of texts have a tab between them.
            top: how many classes to name.

        Raises:
            UserError: E130 what is missing, E131 what the model cannot take, E143 a file of pickled objects or unknown kind.
        """
        found: list[Prediction] = []
        samples = itertools.chain.from_iterable(self._samples(path) for path in inputs)
        while chunk := list(itertools.islice(samples, self.signature.most)):
            names, given = zip(*chunk, strict=True)
            if isinstance(self.preprocessing, Text) and self.preprocessing.answers:
                answers = self._answers(self.preprocessing, given)
                found += [Prediction(name, (), None, answer) for name, answer in zip(names, answers, strict=True)]
                continue
            outputs = self._outputs(self._feed(given))
            if isinstance(self.preprocessing, Characters):
                ends = [min(len(text), self.preprocessing.length) - 1 for text in given]
                outputs = [output[np.arange(len(given)), ends] for output in outputs]
            for k, name in enumerate(names):
                found.append(self._prediction(name, [output[k] for output in outputs], top))
        return found

    def _feed(self, given: Sequence[Any]) -> dict[str, Array]:
        if isinstance(self.preprocessing, Text):
            return {**self.preprocessing.tokens(given, self._tokenizer, whole=self.signature.shape[0] is not None)}
        ready = self.preprocessing(given) if isinstance(self.preprocessing, Characters) else np.stack(given)
        return {self._session.input_names[0]: ready}

    def _answers(self, text: Text, given: Sequence[tuple[str, str]]) -> list[str]:
        """What the model marks in each paragraph."""
        encodings = text.encodings(given, self._tokenizer, whole=self.signature.shape[0] is not None)
        outputs, places = self._outputs({**text.inputs_of(encodings)})[0], text.places(encodings)
        if outputs.shape != places.shape:
            message = f"{self.path} gives outputs of shape {outputs.shape} for {places.shape[1]} tokens, no first and last ones"
            raise UserError("E141", message, "fetch the file again")
        spans = span_of(torch.from_numpy(outputs), within=torch.from_numpy(places[:, :, 0] >= 0)).tolist()
        ends = [(place[first, 0], place[last, 1]) for place, (first, last) in zip(places, spans, strict=True)]
        return [paragraph[begin:end] for (_, paragraph), (begin, end) in zip(given, ends, strict=True)]

    def _outputs(self, feed: dict[str, Array]) -> Sequence[Array]:
        batch = next(iter(feed.values()))
        try:
            outputs = self._session.run(feed)
        except Exception as error:
            message = f"{self.path} fails on inputs of {batch.dtype} {batch.shape}: {first_line(error)}"
            raise UserError("E121", message, "see that it is the right model for these inputs") from error
        for output in outputs:
            if np.shape(output)[:1] != batch.shape[:1] or not np.isfinite(output).all():
                message = f"{self.path} gives outputs that are not finite, or not one for each input"
                raise UserError("E121", message, "see that it is the right model for these inputs")
        return outputs

    def _prediction(self, name: str, outputs: Sequence[Array], top: int) -> Prediction:
        if len(outputs) > 1:
            by_name = zip(self._session.output_names, outputs, strict=True)
            return Prediction(name, (), {own: output.tolist() for own, output in by_name})
        output = outputs[0]
        if not self.labels:
            return Prediction(name, (), output.tolist())
        if self.labels[0] == "" and output.ndim == 2 and output.shape[1] == len(self.labels):  # noqa: PLR2004 (frames, symbols)
            return Prediction(name, (), None, text="".join(self.labels[symbol] for symbol in ctc_greedy_decode(output)))
        if output.shape != (len(self.labels),):
            message = f"{self.path} gives outputs of shape {output.shape} for {len(self.labels)} labels"
            raise UserError("E141", message, "fetch the file again")
        shares = output if self._gives_probabilities else (_sigmoid if self._several else _softmax)(output.astype(np.float64))
        order = np.argsort(-shares, kind="stable")[:top].tolist()
        chosen = (
            tuple(label for label, share in zip(self.labels, shares, strict=True) if share >= _YES) if self._several else None
        )
        return Prediction(name, tuple(Choice(self.labels[k], k, float(shares[k])) for k in order), None, multi_label=chosen)

    def _samples(self, path: Path) -> Iterator[tuple[str, Any]]:
        """(name, model input, or text) of everything in a file or folder."""
        suffix = path.suffix.lower()
        if path.is_dir():
            read, suffixes = self._of_files(path)
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
            if not files:
                what = "recording" if isinstance(read, Sound) else "image"
                raise UserError("E130", f"no {what} in {path}", f"give a folder with {', '.join(suffixes)} files")
            yield from ((str(file), read(file)) for file in files)
        elif not path.exists():
            raise UserError("E130", f"no input at {path}", "check the path")
        elif suffix == ".npy":
            yield from self._array_samples(path)
        elif suffix == ".csv":
            rows = read_rows(path)
            names = (f"{path}:{line}" for line in rows.lines)
            yield from zip(names, self._table(path)(rows), strict=True)
        elif suffix in (*image.SUFFIXES, *sound.SUFFIXES):
            read, suffixes = self._of_files(path)
            if suffix not in suffixes:
                raise self._refused(path, "an image" if suffix in image.SUFFIXES else "a recording")
            yield str(path), read(path)
        elif suffix == ".txt" and isinstance(self.preprocessing, (Text, Characters)):
            yield from _texts(path, pairs=isinstance(self.preprocessing, Text) and self.preprocessing.pairs)
        else:
            kinds = "an image, a .wav, a .npy, a .csv or a folder of images; texts as a .txt, to a model that takes them"
            raise UserError("E143", f"{path} is of no kind that is read", f"give {kinds}")

    def _of_files(self, path: Path) -> tuple[Image | Sound, Sequence[str]]:
        """What reads single files, and their suffixes."""
        if isinstance(self.preprocessing, Sound):
            return self.preprocessing, sound.SUFFIXES
        if isinstance(self.preprocessing, Image):
            return self.preprocessing, image.SUFFIXES
        raise self._refused(path, "a recording" if path.suffix.lower() in sound.SUFFIXES else "an image")

    def _table(self, path: Path) -> Table:
        if isinstance(self.preprocessing, Table):
            return self.preprocessing
        raise self._refused(path, "rows of a table")

    def _refused(self, path: Path, what: str) -> UserError:
        if isinstance(self.preprocessing, (Text, Characters)):
            return UserError("E131", f"{self.path} takes texts, not {path}", "give a .txt with a text a line")
        if isinstance(self.preprocessing, Table):
            columns = ", ".join(self.preprocessing.columns)
            return UserError("E131", f"{self.path} takes rows of a table, not {path}", f"give a .csv with {columns}")
        if isinstance(self.preprocessing, Sound):
            return UserError("E131", f"{self.path} takes recordings, not {path}", "give a .wav or a folder of .wav files")
        if isinstance(self.preprocessing, Image):
            return UserError("E131", f"{self.path} takes images, not {path}", "give an image or a folder of images")
        message = f"{self.path} holds no preprocessing, so it cannot take {what}: {path}"
        return UserError("E131", message, f"give a .npy, already preprocessed: {self.signature}")

    def _array_samples(self, path: Path) -> Iterable[tuple[str, Array]]:
        if isinstance(self.preprocessing, (Text, Characters)):
            raise self._refused(path, "an array")
        values = _read_array(path)
        signature, given = self.signature, f"{path} holds {values.dtype}, shape {values.shape}"
        one = signature.takes(values.shape)
        if values.dtype != signature.dtype or not (one or (values.ndim and signature.takes(values.shape[1:]))):
            raise UserError("E131", given, f"the model takes {signature}")
        if not values.size or (values.dtype.kind == "f" and not np.isfinite(values).all()):
            raise UserError("E131", f"{given}; it is empty, or holds NaN or infinite values", "give finite numbers")
        return [(str(path), values)] if one else ((f"{path}[{k}]", sample) for k, sample in enumerate(values))


def _folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _texts(path: Path, *, pairs: bool) -> Iterator[tuple[str, Any]]:
    """The lines of a file that are not empty, by their number; pairs of texts stand with a tab between."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise UserError("E131", f"{path} is no text in UTF-8: {first_line(error)}", "save it in UTF-8") from error
    if not any(line.strip() for line in lines):
        raise UserError("E130", f"{path} is empty", "give a text a line")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            parts = tuple(line.split("\t"))
            if pairs and len(parts) != 2:  # noqa: PLR2004
                message = f"{path}, line {number}: the model takes pairs of texts"
                raise UserError("E131", message, "put one tab between the two")
            yield f"{path}:{number}", parts if pairs else line


def _sigmoid(scores: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -scores))


def _softmax(scores: Array) -> Array:
    powers: Array = np.exp(scores - scores.max())
    shares: Array = powers / powers.sum()
    return shares


@dataclass(frozen=True)
class RawSignature:
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


def _signature(model: ModelProto, preprocessing: Preprocessing | None) -> RawSignature:
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if isinstance(preprocessing, Text):
        return _signature_of_text(inputs, preprocessing)
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
    signature = RawSignature(_dtype(kind.elem_type), tuple(sizes), most)
    due = np.dtype(np.int64 if isinstance(preprocessing, Characters) else np.float32)
    if preprocessing is not None and not (signature.dtype == due and signature.takes(preprocessing.shape)):
        message = f"the stored preprocessing makes {due} of shape {preprocessing.shape}; the model takes {signature}"
        raise UserError("E141", message, "fetch the file again")
    return signature


def _signature_of_text(inputs: Sequence[ValueInfoProto], text: Text) -> RawSignature:
    names = [value.name for value in inputs]
    if sorted(names) != sorted(text.inputs):
        message = f"the stored preprocessing makes {', '.join(text.inputs)}; the model takes {', '.join(names)}"
        raise UserError("E141", message, "fetch the file again")
    batch, tokens = inputs[0].type.tensor_type.shape.dim
    length = tokens.dim_value if tokens.HasField("dim_value") else None
    return RawSignature(np.dtype(np.int64), (length,), _BATCH if batch.dim_param else 1)


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
