"""A shipped model on raw inputs: its own preprocessing, ONNX Runtime, its own labels."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mirabelle.artifact.input_signature import Arrays, input_signature
from mirabelle.artifact.reading import model_of, onnx_of
from mirabelle.errors import UserError, first_line
from mirabelle.numerics.metrics import ctc_greedy_decode
from mirabelle.runtime.runtime import default_runtime
from mirabelle.task.outputs import Form, OutputKind
from mirabelle.task.preprocessing.raw_inputs import RawInputs
from mirabelle.task.preprocessing.stored import FILE_CONTENTS, from_json

Array = npt.NDArray[Any]
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
        output = model.graph.output[0].name
        last_operators = {node.op_type for node in model.graph.node if output in node.output}
        try:
            labels = _labels(metadata.get("labels", "[]"))
            self.preprocessing = from_json(metadata["preprocessing"]) if "preprocessing" in metadata else None
            self.signature = input_signature(model, self.preprocessing)
            self._raw: RawInputs = self.preprocessing or Arrays(self.signature)
            self.labels = self._raw.labels(labels)
            self._kind_of = partial(OutputKind.of_file, self.labels, metadata, last_operators)
            self._resources = self._raw.open_resources(_folder_of(path))
            self._session = default_runtime().load(model.SerializeToString(), torch.get_num_threads())
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
            prepared = self._raw.prepare(given, self.signature.shape, self._resources)
            outputs = self._outputs({name or self._session.input_names[0]: array for name, array in prepared.arrays.items()})
            answers = prepared.answers(outputs, self.path)
            if answers is not None:
                found += [Prediction(name, (), None, answer) for name, answer in zip(names, answers, strict=True)]
                continue
            outputs = prepared.select(outputs)
            for k, name in enumerate(names):
                found.append(self._prediction(name, [output[k] for output in outputs], top))
        return found

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
        kind = self._kind_of(output.shape)
        if kind.form is Form.NUMBERS:
            return Prediction(name, (), output.tolist())
        if kind.form is Form.SYMBOLS:
            return Prediction(name, (), None, text="".join(self.labels[symbol] for symbol in ctc_greedy_decode(output)))
        if output.shape != (len(self.labels),):
            message = f"{self.path} gives outputs of shape {output.shape} for {len(self.labels)} labels"
            raise UserError("E141", message, "fetch the file again")
        shares = kind.probabilities(output)
        order = np.argsort(-shares, kind="stable")[:top].tolist()
        holding = tuple(label for label, share in zip(self.labels, shares, strict=True) if share >= _YES)
        choices = tuple(Choice(self.labels[k], k, float(shares[k])) for k in order)
        return Prediction(name, choices, None, multi_label=holding if kind.multi_label else None)

    def _samples(self, path: Path) -> Iterator[tuple[str, Any]]:
        """(name, sample) of each raw input in a file or folder; a sample is what the preprocessing makes a model input of."""
        suffix, content = path.suffix.lower(), FILE_CONTENTS.get(path.suffix.lower(), "an image")
        if path.is_dir():
            if not self._raw.folder_content:
                raise self._raw.refusal(self.path, path, content)
            suffixes = self._raw.suffixes
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
            if not files:
                message = f"no {self._raw.folder_content} in {path}"
                raise UserError("E130", message, f"give a folder with {', '.join(suffixes)} files")
            for file in files:
                yield from self._raw.samples(file)
        elif not path.exists():
            raise UserError("E130", f"no input at {path}", "check the path")
        elif suffix == ".npy":
            if not self._raw.takes_arrays:
                raise self._raw.refusal(self.path, path, "an array")
            yield from self.signature.array_samples(path)
        elif suffix in self._raw.suffixes:
            yield from self._raw.samples(path)
        elif suffix in FILE_CONTENTS:
            raise self._raw.refusal(self.path, path, content)
        else:
            kinds = "an image, a .wav, a .npy, a .csv or a folder of images; texts as a .txt, to a model that takes them"
            raise UserError("E143", f"{path} is of no kind that is read", f"give {kinds}")


def _folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _labels(text: str) -> tuple[str, ...]:
    try:
        labels = json.loads(text)
    except (ValueError, RecursionError):
        labels = None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError("E141", "the stored labels are damaged", "fetch the file again")
    return tuple(labels)
