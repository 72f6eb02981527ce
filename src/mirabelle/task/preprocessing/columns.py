"""One column of a table: numbers, or texts as codes of its different words; and what its cells mean together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError
from mirabelle.task.preprocessing.cells import Order, days_of, number_of

Values = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int32]
_SHOWN = 40  # characters of a cell in a message


@dataclass(frozen=True)
class Column:
    """The cells of a column.

    Args:
        name: of the column.
        place: says where a row is, for messages: "rows.csv, line 3".
        words: the different texts of the cells; empty if the cells are numbers.
        codes: the position in `words` of each cell, (rows,).
        gaps: which of the words stand for a missing value, (words,).
        values: the cells as numbers, NaN where they are missing; None if they are texts.
        days: whether `values` are days since 1 January 1970.
    """

    name: str
    place: Callable[[int], str]
    words: Sequence[str] = ()
    codes: Codes = field(default_factory=lambda: np.empty(0, np.int32))
    gaps: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, bool))
    values: Values | None = None
    days: bool = False

    def missing(self) -> npt.NDArray[np.bool_]:
        """Which cells have no value, (rows,)."""
        if self.values is not None:
            return np.isnan(self.values)
        return self.gaps[self.codes]

    def numbers(self, *, comma: bool = False) -> Values:
        """The cells as numbers, (rows,), NaN where they are missing.

        Args:
            comma: whether the decimal mark is a comma.

        Raises:
            UserError: E131 for a cell that is not a finite number.
        """
        remedy = 'write a number, list the text under missing = ["…"], or name the column under categories or ignore'
        return self._parsed(lambda word: number_of(word, comma=comma), "a finite number", remedy)

    def dates(self, order: Order) -> Values:
        """The cells as days since 1 January 1970, (rows,), NaN where they are missing.

        Raises:
            UserError: E131 for a cell that is not a date in this order of day, month and year.
        """
        remedy = 'correct it, list it under missing = ["…"], or name the column under categories or ignore'
        return self._parsed(lambda word: days_of(word, order), f"a date ({order})", remedy)

    def _parsed(self, parse: Callable[[str], float | None], kind: str, remedy: str) -> Values:
        if self.values is not None:
            infinite = np.flatnonzero(np.isinf(self.values))
            if len(infinite):
                raise self.refused(int(infinite[0]), str(self.values[infinite[0]]), kind, remedy)
            return self.values
        parsed = np.full(len(self.words), np.nan)
        for position, word in enumerate(self.words):
            if not self.gaps[position]:
                number = parse(word)
                if number is None:
                    raise self.refused(int(np.argmax(self.codes == position)), word, kind, remedy)
                parsed[position] = number
        return parsed[self.codes]

    def refused(self, row: int, text: str, kind: str, remedy: str) -> UserError:
        """The error for a cell that is not what the column contains."""
        got = f'"{text[:_SHOWN]}" is not {kind}' if text else "the cell is empty"
        return UserError("E131", f'{self.place(row)}, column "{self.name}": {got}', remedy)


class Source(Protocol):
    """A table of which one column at a time is read."""

    @property
    def path(self) -> Path:
        """The file or folder."""

    @property
    def paths(self) -> Sequence[Path]:
        """The files."""

    @property
    def splits(self) -> Mapping[str, range]:
        """The rows of the splits, at least "train"."""

    @property
    def separator(self) -> str:
        """The character between two cells; "" for a file without one."""

    @property
    def names(self) -> Sequence[str]:
        """The names of the columns."""

    def column(self, name: str) -> Column:
        """The cells of a column."""

    def __len__(self) -> int: ...


def name_of_position(position: int) -> str:
    """The name of a column without a name: "column_1" is the first, at position 0."""
    return f"column_{position + 1}"
