"""Preprocessing of texts to the indices of their characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError
from mirabelle.records.record import Count, record
from mirabelle.task.preprocessing import lines
from mirabelle.task.preprocessing.raw_inputs import Array, PreparedInputs, Preprocessing, Sizes

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Windows(PreparedInputs):
    """Windows of characters; the outputs at the last character of a text score the character that follows it.

    Args:
        ends: position of the last character of each text in its window, (samples,).
    """

    ends: Sequence[int]

    def select(self, outputs: Sequence[Array]) -> Sequence[Array]:
        return [output[np.arange(len(self.ends)), list(self.ends)] for output in outputs]


@record
class Characters(Preprocessing):
    """The index of each character of a text in the list of all characters, int64, (texts, length).

    Args:
        characters: all characters that may occur, each once.
        length: length of one model input; of a longer text the end is used, a shorter one is padded with zeros at the end.

    Raises:
        UserError: E110 if a character occurs twice, or there is none.

    Example:
        >>> Characters(characters="abc", length=4)(["cab", "abcabc"]).tolist()
        [[2, 0, 1, 0], [2, 0, 1, 2]]
    """

    key: ClassVar[str] = "characters"
    raw_inputs: ClassVar[str] = "texts"
    suffixes: ClassVar[tuple[str, ...]] = lines.SUFFIXES
    takes_arrays: ClassVar[bool] = False
    dtype: ClassVar[str] = "int64"

    characters: str
    length: Count

    def __post_init__(self) -> None:
        if not self.characters or len(set(self.characters)) < len(self.characters):
            raise UserError(
                "E110", f"every character must occur exactly once; got {self.characters!r}", "remove the repeated character"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one model input, (length,)."""
        return (self.length,)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.shape,)

    @property
    def remedy(self) -> str:
        return lines.REMEDY

    def samples(self, path: Path) -> Iterator[tuple[str, str]]:
        """(name, line) of each line of a text file that is not empty.

        Raises:
            UserError: E130 for a file without text, E131 if it is not UTF-8.
        """
        return lines.lines_of(path)

    def prepare(self, samples: Sequence[str], sizes: Sizes, resources: Any) -> PreparedInputs:
        """Windows of the texts.

        Raises:
            UserError: E131 for an unknown character.
        """
        del sizes, resources
        return _Windows({"": self(samples)}, [min(len(text), self.length) - 1 for text in samples])

    def labels(self, stored: tuple[str, ...]) -> tuple[str, ...]:
        """The characters: the outputs score which of them follows."""
        del stored
        return tuple(self.characters)

    def __call__(self, texts: Sequence[str]) -> Numbers:
        """Texts as model inputs, (texts, length).

        Raises:
            UserError: E131 for an unknown character.
        """
        inputs = np.zeros((len(texts), self.length), np.int64)
        for row, text in zip(inputs, texts, strict=True):
            kept = text[-self.length :]
            row[: len(kept)] = self.numbers(kept)
        return inputs

    def numbers(self, text: str) -> Numbers:
        """The index of every character of a text, (characters,).

        Raises:
            UserError: E131 for an unknown character.
        """
        try:
            return np.array([self._places[character] for character in text], np.int64)
        except KeyError as error:
            message = f"the model does not know the character {error.args[0]!r}"
            raise UserError("E131", message, f"it knows {self.characters!r}") from None

    @cached_property
    def _places(self) -> dict[str, int]:
        return {character: place for place, character in enumerate(self.characters)}

    def to_data(self) -> dict[str, Any]:
        return {"characters": self.characters, "length": self.length}
