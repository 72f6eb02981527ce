"""The interface of preprocessing: how raw inputs are read, how they become model inputs, what outputs mean for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError

Array = npt.NDArray[Any]
Sizes = tuple[int | None, ...]  # shape of one model input without the batch dimension; None for a dynamic size


@dataclass(frozen=True)
class Said:
    """What a model says about a raw input, in words.

    Args:
        text: a text, such as one that follows the input.
        choices: (token, index, probability) of the most probable tokens at the first place that the model fills, best first.
    """

    text: str
    choices: Sequence[tuple[str, int, float]] = ()


@dataclass(frozen=True)
class PreparedInputs:
    """Model inputs made from raw inputs, and the meaning of the outputs for them.

    Args:
        arrays: (samples, ...) by the names of the model's inputs; the key "" is the input of a model with one input.
        notes: sentences on each sample that its user should know; empty if there are none.
    """

    arrays: Mapping[str, Array]
    notes: Sequence[tuple[str, ...]] = field(default=(), kw_only=True)

    def select(self, outputs: Sequence[Array]) -> Sequence[Array]:
        """The part of each output that belongs to the raw input, (samples, ...); by default all of it."""
        return outputs

    def answers(self, outputs: Sequence[Array], model: Path) -> list[str] | None:
        """The answer that the outputs mark in the text of each raw input; None if the model does not mark answers.

        Args:
            outputs: outputs of the model, (samples, ...).
            model: file of the model, for messages.

        Raises:
            UserError: E141 if the shapes of outputs and inputs do not fit.
        """
        del outputs, model
        return None

    def said(self, run: Callable[[Mapping[str, Array]], Sequence[Array]], labels: Sequence[str], top: int) -> list[Said] | None:
        """What the model says about each raw input, for models whose outputs become text; None for others.

        Args:
            run: inputs by name -> outputs of the model.
            labels: names of its classes.
            top: most choices of one result.

        Raises:
            UserError: E121 or E141 if the model fails, or its outputs are not of that kind.
        """
        del run, labels, top
        return None


class RawInputs(ABC):
    """A kind of raw input: its file types, how files are read, and how samples become model inputs."""

    raw_inputs: ClassVar[str]
    """What the model takes, for messages, such as "images"."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Suffixes of files with raw inputs, in lower case, with the dot."""
    file_content: ClassVar[str] = ""
    """The content of a file with one of these suffixes, for messages, such as "an image"; empty if the suffix is ambiguous."""
    folder_content: ClassVar[str] = ""
    """The content of one file in a folder of raw inputs, such as "image"; empty if folders are not supported."""
    takes_arrays: ClassVar[bool] = True
    """Whether a .npy file may contain model inputs, which are already preprocessed."""

    @property
    @abstractmethod
    def remedy(self) -> str:
        """The remedy in errors about an input of another kind."""

    def refusal(self, model: Path, path: Path, content: str) -> UserError:
        """The error for an input of another kind.

        Args:
            model: file of the model.
            path: file of the input.
            content: its content, such as "an image".
        """
        del content
        return UserError("E131", f"{model} takes {self.raw_inputs}, not {path}", self.remedy)

    @abstractmethod
    def samples(self, path: Path) -> Iterator[tuple[str, Any]]:
        """(name, sample) of each raw input in a file with one of the `suffixes`, for `prepare`.

        Raises:
            UserError: E130 for a missing or empty file, E131 for one that cannot be read.
        """

    def open_resources(self, folder: Path) -> Any:
        """Read what `prepare` needs from files next to the model, such as a tokenizer; None if it needs nothing.

        Raises:
            UserError: E130 if a file is missing, E141 if it is not the one of the model, E160 if a package is missing.
        """
        del folder

    def prepare(self, samples: Sequence[Any], sizes: Sizes, resources: Any) -> PreparedInputs:
        """Model inputs from samples; by default the samples are model inputs and are stacked.

        Args:
            samples: samples from `samples`, without their names.
            sizes: shape of one model input; None for a dynamic size.
            resources: the result of `open_resources`.

        Raises:
            UserError: E131 for a sample that the model cannot take.
        """
        del sizes, resources
        return PreparedInputs({"": np.stack(samples)})

    def labels(self, stored: tuple[str, ...]) -> tuple[str, ...]:
        """The names of the classes of the outputs; by default those stored with the model."""
        return stored


class Preprocessing(RawInputs):
    """A kind of raw input whose preprocessing is a frozen record, stored as plain data inside the model."""

    key: ClassVar[str]
    """The key in the stored data that identifies this kind."""
    dtype: ClassVar[str] = "float32"
    """Dtype of the model inputs."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the model's inputs; empty for a model with one input of any name."""
        return ()

    @property
    @abstractmethod
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each model input, without the batch dimension."""

    @property
    def image_layout(self) -> Literal["channels-first", "channels-last"] | None:
        """The layout of model inputs that are images; None for other inputs."""
        return None

    @abstractmethod
    def to_data(self) -> dict[str, Any]:
        """The record as plain data, from which it can be built again."""
