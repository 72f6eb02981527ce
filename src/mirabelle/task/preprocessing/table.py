"""Preprocessing of rows of a table to model inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError
from mirabelle.records.record import Finite, record
from mirabelle.task.preprocessing import scaling
from mirabelle.task.preprocessing.cells import Order
from mirabelle.task.preprocessing.columns import Column, Source, Values
from mirabelle.task.preprocessing.delimited import Habits, read_rows
from mirabelle.task.preprocessing.raw_inputs import PreparedInputs, Preprocessing, Sizes

Array = npt.NDArray[np.float32]
Indices = npt.NDArray[np.integer]
Write = Callable[[Indices, Array], None]
_BLOCK = 1 << 16  # rows that are written at once
_MOST = float(np.finfo(np.float32).max)
_OTHER = "other"
_DATE_PARTS = ("year sin", "year cos", "weekday sin", "weekday cos")
_YEAR, _WEEK, _MONDAY = 365.2425, 7, 4  # days; 1 January 1970 was the fourth day after a Monday, counted from 1
_BOOLEANS = {"true", "false"}
_FEW = 12  # features in a sentence


@record
class Table(Preprocessing):
    """Columns of a table as features, float32; each column gives one or more of them, in this order:

    - a number or a date (days since 1 January 1970): (value − mean) / deviation; after it, for a date, sine and cosine of its
      part of the year and of the week;
    - a column of `words`: 1 for the cell's word and 0 for each other one, and a last feature for all words that are not listed;
    - a column of `codes`: the position of the cell's word, from 1, 0 for words that are not listed, divided by the number of
      words unless the column is `embedded`;
    - for each of these that is `flagged`: 1 where the cell was empty, otherwise 0.

    Args:
        columns: names of the columns, in the order of the model's input.
        mean: mean of each column; by default 0.
        deviation: standard deviation of each column; by default 1.
        words: of columns of categories: the words that have a feature; "" is a missing value.
        codes: of columns of many categories: the words that have a code.
        embedded: columns of codes that are not divided, so that a network can look up their embeddings.
        dates: of columns of dates: the order of day, month and year.
        fill: of columns of numbers and dates: the value that stands for a missing one, the median.
        flagged: columns of numbers and dates with a feature that says that the value was missing.
        commas: columns of numbers with a decimal comma.
        habits: how files are written.

    Raises:
        UserError: E110 if there is no column, a name occurs twice or is not one of the columns, or the number of means or
            deviations is not that of the columns.

    Example:
        >>> Table(columns=("height", "width"), mean=(1.0, 2.0), deviation=(2.0, 1.0)).scaled(np.array([[3.0, 2.0]]))
        array([[1., 0.]], dtype=float32)
        >>> Table(columns=("size", "color"), words={"color": ("blue", "red")}, fill={"size": 1.5}, flagged=("size",)).features
        ('size', 'size missing', 'color=blue', 'color=red', 'color=other')
    """

    key: ClassVar[str] = "columns"
    raw_inputs: ClassVar[str] = "rows of a table"
    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".data", ".tsv")
    file_content: ClassVar[str] = "rows of a table"

    columns: tuple[str, ...]
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    codes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    embedded: tuple[str, ...] = ()
    dates: Mapping[str, Order] = field(default_factory=dict)
    fill: Mapping[str, Finite] = field(default_factory=dict)
    flagged: tuple[str, ...] = ()
    commas: tuple[str, ...] = ()
    habits: Habits = field(default_factory=Habits)

    def __post_init__(self) -> None:
        if not self.columns or len(set(self.columns)) != len(self.columns):
            raise UserError(
                "E110",
                f"columns needs at least one name, each only once; got {list(self.columns)}",
                "name the columns of the .csv file",
            )
        for part in (self.words, self.codes, self.embedded, self.dates, self.fill, self.flagged, self.commas):
            unknown = [name for name in part if name not in self.columns]
            if unknown:
                raise UserError("E110", f'"{unknown[0]}" is not one of the columns', "name one of them")
        if set(self.words) & set(self.codes) or not set(self.flagged) <= set(self.fill):
            raise UserError("E110", "a column has words or codes, and a flag only with a fill", "give one of them")
        mean, deviation = scaling.settled(self.mean, self.deviation, len(self.columns), "columns")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "deviation", deviation)

    def features_of(self, name: str) -> tuple[str, ...]:
        """The names of the features that a column gives."""
        if name in self.words:
            return (*(f"{name}={word or 'missing'}" for word in self.words[name]), f"{name}={_OTHER}")
        found = (name, *(f"{name} {part}" for part in _DATE_PARTS if name in self.dates))
        return (*found, f"{name} missing") if name in self.flagged else found

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the model's inputs, in their order."""
        return tuple(feature for name in self.columns for feature in self.features_of(name))

    @property
    def quantities(self) -> tuple[str, ...]:
        """The features that are numbers and dates, unlike those of words and flags."""
        return tuple(name for name in self.columns if name not in self.words and name not in self.codes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one model input, (features,)."""
        return (len(self.features),)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.shape,)

    @property
    def remedy(self) -> str:
        return f"give a .csv file with the columns {', '.join(self.columns)}"

    @property
    def sentence(self) -> str:
        """How many features the network takes, and which, as the columns of the table give them."""
        several = [f"{name} ({len(of_one)})" if len(of_one := self.features_of(name)) > 1 else name for name in self.columns]
        more = f", and {len(several) - _FEW} more columns" if len(several) > _FEW else ""
        count, named = len(self.features), " ".join(", ".join(several[:_FEW]).split())
        return f"The network takes {count} feature{'s' * (count > 1)}: {named}{more}."

    def samples(self, path: Path) -> Iterator[tuple[str, Row]]:
        """("file:line", row) of each row of a .csv file.

        Raises:
            UserError: E130 if the file is missing or has no rows, E131 if it is no .csv file, a column is missing, or a cell
                has no value that the column can have.
        """
        rows = read_rows(path, self.habits)
        unknown: dict[int, list[str]] = {}
        inputs = self.inputs(rows, unknown)
        for k, line in enumerate(rows.lines):
            yield f"{path}:{line}", Row(inputs[k], tuple(unknown.get(k, ())))

    def prepare(self, samples: Sequence[Row | Array], sizes: Sizes, resources: Any) -> PreparedInputs:
        rows = [sample if isinstance(sample, Row) else Row(sample) for sample in samples]
        prepared = super().prepare([row.inputs for row in rows], sizes, resources)
        return PreparedInputs(prepared.arrays, notes=tuple(row.notes for row in rows))

    def __call__(self, rows: Source) -> Array:
        """Rows as model inputs, (rows, features); other columns of the table are ignored.

        Raises:
            UserError: E131 if a column is missing, or a cell has no value that the column can have.
        """
        return self.inputs(rows, {})

    def inputs(self, rows: Source, unknown: dict[int, list[str]]) -> Array:
        """The same; `unknown` gets a sentence for each cell with a word that is not known, by its row."""
        missing = [name for name in self.columns if name not in rows.names]
        if missing:
            named = ", ".join(f'"{name}"' for name in missing)
            raise UserError("E131", f"{rows.path} lacks columns {named}", f"its columns are: {', '.join(rows.names)}")
        inputs = np.empty((len(rows), len(self.features)), np.float32)
        start = 0
        for name in self.columns:
            width = len(self.features_of(name))
            for row, note in self.encode(rows.column(name), inputs[:, start : start + width]).items():
                unknown.setdefault(row, []).append(note)
            start += width
        return inputs

    def encode(self, column: Column, out: Array, rows: Indices | None = None) -> dict[int, str]:
        """Write the features of a column into an array (rows, features of the column), in blocks that take little memory.

        Args:
            column: all its cells.
            out: is written.
            rows: the positions of the rows that are wanted; by default all.

        Returns:
            A sentence for each cell of the column with a word that is not known, by its row.

        Raises:
            UserError: E131 for a cell that has no value that the column can have.
        """
        write, notes = self._writer(column)
        for start in range(0, len(out), _BLOCK):
            stop = min(start + _BLOCK, len(out))
            write(np.arange(start, stop) if rows is None else rows[start:stop], out[start:stop])
        return notes

    def parts(self, column: Column, rows: int, at_once: int) -> Iterator[Array]:
        """The features of a column of so many rows in parts, (at_once, features of the column), as `encode` writes them."""
        write, _ = self._writer(column)
        for start in range(0, rows, at_once):
            index = np.arange(start, min(start + at_once, rows))
            out = np.empty((len(index), len(self.features_of(column.name))), np.float32)
            write(index, out)
            yield out

    def _writer(self, column: Column) -> tuple[Write, dict[int, str]]:
        return self._words(column) if column.name in self.words or column.name in self.codes else self._numbers(column)

    def _numbers(self, column: Column) -> tuple[Write, dict[int, str]]:
        """What writes rows of a column of numbers or dates, and no notes."""
        name, values = column.name, self.values(column)
        fill, position = self.fill.get(name), self.columns.index(name)
        missing = np.isnan(values)
        if fill is None and missing.any():
            remedy = "write one, or leave the row out: the training rows have a number in each of its cells"
            row = int(np.argmax(missing))
            text = column.words[column.codes[row]] if column.values is None else ""
            raise column.refused(row, text, "a finite number", remedy)

        def write(rows: Indices, out: Array) -> None:
            found, empty = values[rows], missing[rows]
            if fill is not None:
                found[empty] = fill
            out[:, 0] = _scaled(found, self.mean[position], self.deviation[position])
            if name in self.dates:
                out[:, 1 : 1 + len(_DATE_PARTS)] = _parts(found)
            if name in self.flagged:
                out[:, -1] = empty

        return write, {}

    def _words(self, column: Column) -> tuple[Write, dict[int, str]]:
        """What writes rows of a column of categories, and a sentence for each cell with a word that is not known."""
        name = column.name
        known = self.words.get(name) or self.codes[name]
        place = {word: k for k, word in enumerate(known)}
        words, codes = words_of(column)
        slots = np.array([place.get(word, len(known)) for word in words], np.int64)

        def write(rows: Indices, out: Array) -> None:
            chosen = slots[codes[rows]]
            if name in self.words:
                out[:] = 0
                out[np.arange(len(out)), chosen] = 1
            else:
                numbers = np.where(chosen == len(known), 0, chosen + 1)
                out[:, 0] = numbers if name in self.embedded else numbers / len(known)

        said = {k: f'"{word[:40]}"' if word else "an empty cell" for k, word in enumerate(words) if word not in place}
        unlisted: Sequence[Any] = np.flatnonzero(np.isin(codes, list(said))).tolist() if said else []
        sentence = '{}, column "{}": {} is none of the words that were learned; it counts as other'
        return write, {int(row): sentence.format(column.place(int(row)), name, said[int(codes[row])]) for row in unlisted}

    def values(self, column: Column) -> Values:
        """The cells of a column of numbers or dates, NaN where they are missing; E131 for any other cell."""
        if column.name in self.dates:
            return column.dates(self.dates[column.name])
        return column.numbers(comma=column.name in self.commas)

    def scaled(self, values: Values) -> Array:
        """Values (..., columns) of a table of complete numbers, standardized to model inputs of the same shape."""
        return _scaled(values, np.array(self.mean), np.array(self.deviation))

    def to_data(self) -> dict[str, Any]:
        data: dict[str, Any] = {"columns": list(self.columns), **scaling.to_data(self.mean, self.deviation)}
        for name in ("words", "codes", "dates", "fill"):
            if table := getattr(self, name):
                data[name] = {key: list(value) if isinstance(value, tuple) else value for key, value in table.items()}
        for name in ("embedded", "flagged", "commas"):
            if getattr(self, name):
                data[name] = list(getattr(self, name))
        habits = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(self.habits).items()
            if value not in (None, ())
        }
        return {**data, "habits": habits} if habits else data


@dataclass(frozen=True)
class Row:
    """A row as model input, (features,), with sentences on words that are not known."""

    inputs: Array
    notes: tuple[str, ...] = ()


def words_of(column: Column) -> tuple[list[str], npt.NDArray[np.int32]]:
    """(words, codes of the cells) of a column of categories; missing values are "", and true and false are in lower case.

    A column of numbers gives their shortest spelling: "1" for 1.0.
    """
    if column.values is not None:
        numbers, codes = np.unique(column.values), np.empty(len(column.values), np.int32)
        for start in range(0, len(codes), _BLOCK):  # an inverse of all rows would take their memory five times
            codes[start : start + _BLOCK] = np.searchsorted(numbers, column.values[start : start + _BLOCK])
        return ["" if math.isnan(number) else shortest(number) for number in numbers.tolist()], codes
    lower = {word.casefold() for word, gap in zip(column.words, column.gaps, strict=True) if not gap} <= _BOOLEANS
    words = ["" if gap else word.casefold() if lower else word for word, gap in zip(column.words, column.gaps, strict=True)]
    return words, column.codes


def shortest(number: float) -> str:
    """A number as text, without ".0" if it is whole."""
    return str(int(number)) if number.is_integer() else repr(number)


def _scaled(values: Values, mean: float | Values, deviation: float | Values) -> Array:
    with np.errstate(over="ignore"):
        scaled = (values - mean) / deviation
    inputs: Array = np.clip(scaled, -_MOST, _MOST).astype(np.float32)
    return inputs


def _parts(days: Values) -> Values:
    """Sine and cosine of the part of the year and of the week, (rows, 4)."""
    year, week = 2 * np.pi * (days / _YEAR % 1), 2 * np.pi * ((days + _MONDAY - 1) / _WEEK % 1)
    return np.stack([np.sin(year), np.cos(year), np.sin(week), np.cos(week)], axis=1)


def mean_and_deviation(values: Values) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each column of (rows, columns); a constant column (up to rounding) has deviation 1.

    Example:
        >>> mean_and_deviation(np.array([[0.0, 5.0], [2.0, 5.0]]))
        ((1.0, 5.0), (1.0, 1.0))
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = values.mean(axis=0), values.std(axis=0)
    constant = deviation <= 1e-12 * np.abs(mean)
    return tuple(mean.tolist()), tuple(np.where(constant, 1.0, deviation).tolist())
