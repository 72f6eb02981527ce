"""Predictions of a deployed model for raw inputs, with its stored preprocessing and labels, in ONNX Runtime."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mirabelle.artifact.input_signature import Arrays, input_signature
from mirabelle.artifact.reading import model_of, onnx_of, runtime_of
from mirabelle.errors import UserError, first_line
from mirabelle.numerics.metrics import ctc_greedy_decode
from mirabelle.runtime.runtime import runtime_named
from mirabelle.sources.missing import missing
from mirabelle.task.outputs import Form, OutputKind
from mirabelle.task.preprocessing.raw_inputs import RawInputs
from mirabelle.task.preprocessing.stored import FILE_CONTENTS, from_json

Array = npt.NDArray[Any]
_YES = 0.5  # least probability of a predicted label


@dataclass(frozen=True)
class Choice:
    """A class with its probability.

    Args:
        label: name of the class.
        index: index of the class.
        probability: in [0, 1].
    """

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The prediction of a model for one input.

    Args:
        input: name of the input.
        top: the most probable classes or labels, best first; empty for a model without labels, or with several outputs.
        outputs: the output if the model has no labels, or several outputs by name; the label at each position if the model
            labels tokens or pixels; otherwise None.
        answer: the answer in the paragraph, for a model that answers questions.
        text: the decoded text of a CTC model; what follows a text; a text with its gaps filled, or with the tag of each word;
            or the text that a model of sequences writes. `top` then has the tokens at the first place that is filled.
        multi_label: the labels with a probability of at least 0.5, for a multi-label model.
        notes: sentences on the input that its user should know, such as a word in a table that is not known.
    """

    input: str
    top: tuple[Choice, ...]
    outputs: Any
    answer: str | None = None
    text: str | None = None
    multi_label: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def to_data(self) -> dict[str, Any]:
        return {**self._answer(), "notes": list(self.notes)} if self.notes else self._answer()

    def _answer(self) -> dict[str, Any]:
        for name in ("answer", "text"):
            if getattr(self, name) is not None:
                top = {"top": [vars(choice) for choice in self.top]} if self.top else {}
                return {"input": self.input, name: getattr(self, name), **top}
        if not self.top:
            return {"input": self.input, "outputs": self.outputs}
        first = vars(self.top[0]) if self.multi_label is None else {"labels": list(self.multi_label)}
        return {"input": self.input, **first, "top": [vars(choice) for choice in self.top]}


class Predictor:
    """A deployed model, loaded from an .onnx or .mira file or the folder of a run.

    Args:
        path: the file or folder.
        runtime: name of the runtime that computes; by default that in which the run has judged the model, if it is installed.

    Raises:
        UserError: E130, E141, E142 or E143 if the file is missing or not valid; E121 if the model takes more than one input.
    """

    def __init__(self, path: Path, runtime: str | None = None) -> None:
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
            self._session = runtime_named(runtime or runtime_of(path)).load(model.SerializeToString(), torch.get_num_threads())
        except UserError as error:
            raise error.at(str(path)) from None

    def __call__(self, inputs: Sequence[Path], top: int = 3) -> list[Prediction]:
        """Predictions for files: images, recordings, .csv tables, lines of .txt files, or .npy arrays of preprocessed inputs.

        A character language model predicts the character that follows a line. A CTC model, whose first label "" is the blank,
        predicts the text of the most probable path.

        Args:
            inputs: files and folders; a .npy file contains one sample or a batch, and a line of a .txt file a text, or two
                texts separated by a tab.
            top: largest number of classes in a prediction.

        Raises:
            UserError: E130 if an input is missing, E131 if the model cannot take it, E143 for a pickle or an unknown file type.
        """
        found: list[Prediction] = []
        samples = itertools.chain.from_iterable(self._samples(path) for path in inputs)
        while chunk := list(itertools.islice(samples, self.signature.most)):
            names, given = zip(*chunk, strict=True)
            prepared = self._raw.prepare(given, self.signature.shape, self._resources)
            said = prepared.said(partial(self._outputs, names=names), self.labels, top)
            if said is not None:
                for name, one in zip(names, said, strict=True):
                    found.append(Prediction(name, tuple(Choice(*choice) for choice in one.choices), None, text=one.text))
                continue
            feed = {name or self._session.input_names[0]: array for name, array in prepared.arrays.items()}
            outputs = self._outputs(feed, names)
            answers = prepared.answers(outputs, self.path)
            if answers is not None:
                found += [Prediction(name, (), None, answer) for name, answer in zip(names, answers, strict=True)]
                continue
            outputs = prepared.select(outputs)
            for k, name in enumerate(names):
                prediction = self._prediction(name, [output[k] for output in outputs], top)
                found.append(replace(prediction, notes=prepared.notes[k]) if prepared.notes else prediction)
        return found

    def _outputs(self, feed: Mapping[str, Array], names: Sequence[str]) -> Sequence[Array]:
        batch = next(iter(feed.values()))
        try:
            outputs = self._session.run(feed)
        except Exception as error:
            message = f"{self.path} fails on inputs of {batch.dtype} {batch.shape}: {first_line(error)}"
            raise UserError("E121", message, "check that it is the right model for these inputs") from error
        for output in outputs:
            if np.shape(output)[:1] != batch.shape[:1]:
                message = f"{self.path} gives outputs of shape {np.shape(output)} for {len(batch)} inputs"
                raise UserError("E121", message, "check that it is the right model for these inputs")
            finite = np.isfinite(output).reshape(len(output), -1).all(1)
            if not finite.all():
                wrong = [name for name, fine in zip(names, finite, strict=False) if not fine]
                message = f"{self.path} gives outputs that are NaN or infinite for {wrong[0]}"
                message += f" and {len(wrong) - 1} more of {len(names)} inputs" if len(wrong) > 1 else ""
                raise UserError("E121", message, "leave these inputs out, or check that it is the right model for them")
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
        if kind.form is Form.CLASSES and output.ndim > 1 and kind.classes_axis is not None:  # tokens or pixels
            return Prediction(name, (), np.array(self.labels)[kind.chosen(output[None])[0]].tolist())
        if kind.form is Form.LABELS and output.size == 1:
            output = output.reshape(1)
        if output.shape != (1 if kind.form is Form.LABELS and not kind.multi_label else len(self.labels),):
            message = f"{self.path} gives outputs of shape {output.shape} for {len(self.labels)} labels"
            raise UserError("E141", message, "check that it is the right file; classes must be in the first or the last axis")
        probabilities = kind.probabilities(output)
        order = np.argsort(-probabilities, kind="stable")[:top].tolist()
        predicted = tuple(label for label, value in zip(self.labels, probabilities, strict=True) if value >= _YES)
        choices = tuple(Choice(self.labels[k], k, float(probabilities[k])) for k in order)
        return Prediction(name, choices, None, multi_label=predicted if kind.multi_label else None)

    def _samples(self, path: Path) -> Iterator[tuple[str, Any]]:
        """(name, sample) of each raw input in a file or folder; samples are inputs of the preprocessing."""
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
            raise missing("input", str(path), path, "check the path")
        elif suffix == ".npy":
            if not self._raw.takes_arrays:
                raise self._raw.refusal(self.path, path, "an array")
            yield from self.signature.array_samples(path)
        elif suffix in self._raw.suffixes:
            yield from self._raw.samples(path)
        elif suffix in FILE_CONTENTS:
            raise self._raw.refusal(self.path, path, content)
        else:
            kinds = "an image, a .wav, .npy, .csv, .tsv or .txt file, or a folder of images or .wav files"
            raise UserError("E143", f"{path} has an unknown file type", f"give {kinds}")


def _folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _labels(text: str) -> tuple[str, ...]:
    try:
        labels = json.loads(text)
    except (ValueError, RecursionError):
        labels = None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError("E141", "the stored labels are damaged", "download or copy the file again")
    return tuple(labels)
