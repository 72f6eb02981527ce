"""Preprocessing of rows of a .csv file to model inputs."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError
from mirabelle.records.record import record
from mirabelle.task.preprocessing import scaling
from mirabelle.task.preprocessing.raw_inputs import Preprocessing

Values = npt.NDArray[np.float64]
Array = npt.NDArray[np.float32]
_MOST = float(np.finfo(np.float32).max)


@record
class Table(Preprocessing):
    """Standardized columns of a table: x[k] = (value of columns[k] − mean[k]) / deviation[k], float32.

    Args:
        columns: names of the columns, in the order of the model's input.
        mean: mean of each column; by default 0.
        deviation: standard deviation of each column; by default 1.

    Raises:
        UserError: E110 if there is no column, a name occurs twice, or the number of means or deviations is not that of the
            columns.

    Example:
        >>> Table(columns=("height", "width"), mean=(1.0, 2.0), deviation=(2.0, 1.0)).scaled(np.array([[3.0, 2.0]]))
        array([[1., 0.]], dtype=float32)
    """

    key: ClassVar[str] = "columns"
    raw_inputs: ClassVar[str] = "rows of a table"
    suffixes: ClassVar[tuple[str, ...]] = (".csv",)
    file_content: ClassVar[str] = "rows of a table"

    columns: tuple[str, ...]
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.columns or len(set(self.columns)) != len(self.columns):
            raise UserError(
                "E110",
                f"columns needs at least one name, each only once; got {list(self.columns)}",
                "name the columns of the .csv file",
            )
        mean, deviation = scaling.settled(self.mean, self.deviation, len(self.columns), "columns")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "deviation", deviation)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one model input, (columns,)."""
        return (len(self.columns),)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.shape,)

    @property
    def remedy(self) -> str:
        return f"give a .csv file with the columns {', '.join(self.columns)}"

    def samples(self, path: Path) -> Iterator[tuple[str, Array]]:
        """("file:line", model input) of each row of a .csv file.

        Raises:
            UserError: E130 if the file is missing or has no rows, E131 if it is no .csv file, a column is missing, or a value
                is not a number.
        """
        rows = read_rows(path)
        yield from zip((f"{path}:{line}" for line in rows.lines), self(rows), strict=True)

    def __call__(self, rows: Rows) -> Array:
        """Rows as model inputs, (rows, columns); other columns of the table are ignored.

        Raises:
            UserError: E131 if a column is missing or a value is not a number.
        """
        return self.scaled(rows.numbers(self.columns))

    def scaled(self, values: Values) -> Array:
        """Values (..., columns), standardized to model inputs of the same shape."""
        with np.errstate(over="ignore"):
            scaled = (values - np.array(self.mean)) / np.array(self.deviation)
        inputs: Array = np.clip(scaled, -_MOST, _MOST).astype(np.float32)
        return inputs

    def to_data(self) -> dict[str, Any]:
        return {"columns": list(self.columns), **scaling.to_data(self.mean, self.deviation)}


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


@dataclass(frozen=True)
class Rows:
    """A .csv file as text.

    Args:
        path: the file.
        columns: names in the header.
        cells: the cells of every row.
        lines: the line number of every row.
    """

    path: Path
    columns: Sequence[str]
    cells: Sequence[Sequence[str]]
    lines: Sequence[int]

    def __len__(self) -> int:
        return len(self.cells)

    def texts(self, column: str) -> list[str]:
        """The cells of a column, without leading and trailing spaces."""
        position = self.columns.index(column)
        return [row[position].strip() for row in self.cells]

    def numbers(self, columns: Sequence[str]) -> Values:
        """Columns as numbers, (rows, columns).

        Raises:
            UserError: E131 if columns are missing or a cell is not a finite number; the message names them.
        """
        missing = [name for name in columns if name not in self.columns]
        if missing:
            named = ", ".join(f'"{name}"' for name in missing)
            raise UserError("E131", f"{self.path} lacks columns {named}", f"its columns are: {', '.join(self.columns)}")
        values = np.empty((len(self.cells), len(columns)))
        for position, name in enumerate(columns):
            texts = self.texts(name)
            values[:, position] = [self._number(text, name, row) for row, text in enumerate(texts)]
        return values

    def _number(self, text: str, column: str, row: int) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            place = f'{self.path}, line {self.lines[row]}, column "{column}"'
            got = f'"{text[:40]}" is not a finite number' if text else "the cell is empty"
            raise UserError("E131", f"{place}: {got}", "write a number, or remove the row or the column")
        return number


def read_rows(path: Path) -> Rows:
    """Read a .csv file: a header with unique names, then rows with one cell for each name; empty lines are ignored.

    Raises:
        UserError: E130 if the file is missing or has no rows, E131 if it is no such file.
    """
    if not path.is_file():
        raise UserError("E130", f"no table at {path}", "check the path")
    cells: list[list[str]] = []
    lines: list[int] = []
    header: list[str] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if not header:
                    header = [name.strip() for name in row]
                elif row:
                    cells.append(row)
                    lines.append(reader.line_num)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError("E131", f"{path} is no .csv file in UTF-8: {error}", "save it as .csv file with commas") from error
    _check_header(path, header)
    for row, line in zip(cells, lines, strict=True):
        if len(row) != len(header):
            message = f"{path}, line {line}: the row has {len(row)} cells, the header {len(header)}"
            raise UserError("E131", message, "correct the row; a cell with a comma must be in quotes")
    if not cells:
        raise UserError("E130", f"{path} has no rows after its header", "give at least one row")
    return Rows(path, header, cells, lines)


def _check_header(path: Path, header: Sequence[str]) -> None:
    if not header:
        raise UserError("E130", f"{path} is empty", "write a header with the names of the columns, then rows")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        raise UserError("E131", f'{path} does not separate columns by commas: "{header[0][:60]}"', "save it with commas")
    if not all(header):
        raise UserError("E131", f"{path}: column {list(header).index('') + 1} has no name", "name every column in line 1")
    twice = sorted({name for name in header if list(header).count(name) > 1})
    if twice:
        raise UserError("E131", f'{path} has two columns named "{twice[0]}"', "rename one of them")
