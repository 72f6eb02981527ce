"""The contract of a kind of raw input: how it is read, how it becomes a model input, what outputs mean for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError

Array = npt.NDArray[Any]
Sizes = tuple[int | None, ...]  # of one model input without the batch; None: any size


@dataclass(frozen=True)
class PreparedInputs:
    """Model inputs made from raw ones, and what the outputs for them mean.

    Args:
        arrays: (samples, ...) by the names of the model's inputs; under "" where the model has one input, whatever its name.
    """

    arrays: Mapping[str, Array]

    def select(self, outputs: Sequence[Array]) -> Sequence[Array]:
        """The part of each output that is about the raw input, (samples, ...); by default all of it."""
        return outputs

    def answers(self, outputs: Sequence[Array], model: Path) -> list[str] | None:
        """The text that the outputs mark in each raw input; None where outputs mark no text.

        Args:
            outputs: of the model, (samples, ...).
            model: its file, for messages.

        Raises:
            UserError: E141 when the outputs do not fit the inputs.
        """
        del outputs, model
        return None


class RawInputs(ABC):
    """A kind of raw input: which files hold it, how they are read, and how samples become model inputs."""

    raw_inputs: ClassVar[str]
    """What the model takes, for messages: "images"."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Of the files that hold raw inputs, in lower case, with the dot."""
    file_content: ClassVar[str] = ""
    """What a file with one of these suffixes holds, for messages: "an image"; empty where the suffix does not say."""
    folder_content: ClassVar[str] = ""
    """What one file in a folder of raw inputs holds: "image"; empty where a folder is not read."""
    takes_arrays: ClassVar[bool] = True
    """Whether a .npy file may give model inputs that are prepared already."""

    @property
    @abstractmethod
    def remedy(self) -> str:
        """What to give instead of an input of another kind."""

    def refusal(self, model: Path, path: Path, content: str) -> UserError:
        """The error for an input of another kind.

        Args:
            model: file of the model.
            path: of the input.
            content: what it holds, "an image".
        """
        del content
        return UserError("E131", f"{model} takes {self.raw_inputs}, not {path}", self.remedy)

    @abstractmethod
    def samples(self, path: Path) -> Iterator[tuple[str, Any]]:
        """(name, sample) of each raw input in a file with one of the `suffixes`; a sample is what `prepare` takes.

        Raises:
            UserError: E130 for a missing or empty file, E131 for one that cannot be read.
        """

    def open_resources(self, folder: Path) -> Any:
        """What `prepare` needs of the files next to the model, read once: a tokenizer; None where it needs nothing.

        Raises:
            UserError: E130 missing file, E141 another file than the model was made with, E160 missing package.
        """
        del folder

    def prepare(self, samples: Sequence[Any], sizes: Sizes, resources: Any) -> PreparedInputs:
        """Model inputs of some samples; by default each sample is one already.

        Args:
            samples: as `samples` gives them.
            sizes: of one model input.
            resources: from `open_resources`.

        Raises:
            UserError: E131 for a sample that the model cannot take.
        """
        del sizes, resources
        return PreparedInputs({"": np.stack(samples)})

    def labels(self, stored: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the classes that the outputs score; by default those stored with the model."""
        return stored


class Preprocessing(RawInputs):
    """A kind of raw input that is described by plain data, which travel inside the model: a frozen record."""

    key: ClassVar[str]
    """The name in the stored data that only this kind has."""
    dtype: ClassVar[str] = "float32"
    """Of the model inputs."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """Of the model's inputs; empty where it has one input, whatever its name."""
        return ()

    @property
    @abstractmethod
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of each model input, without the batch."""

    @property
    def image_layout(self) -> Literal["channels-first", "channels-last"] | None:
        """Where model inputs that are images have their channels; None where they are no images."""
        return None

    @abstractmethod
    def to_data(self) -> dict[str, Any]:
        """Plain data, from which the record can be made again."""
