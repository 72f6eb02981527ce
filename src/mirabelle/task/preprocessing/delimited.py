"""Files of rows whose cells are separated by commas, semicolons, tabs, bars or spaces, held as text by columns."""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError
from mirabelle.records.record import Count, record
from mirabelle.task.preprocessing.cells import is_missing, number_of
from mirabelle.task.preprocessing.columns import Codes, Column, name_of_position

_SEPARATORS = ("\t", ";", "|", ",", " ")  # the first that divides all rows alike is taken
_SAMPLE, _BLOCK, _ROWS = 200, 1 << 20, 20_000  # rows of a sample; bytes and rows that are read at once
_BETWEEN = "\x1f"  # between the cells of a column in memory
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
_UNDEFINED = re.compile(b"[\x00-\x08\x0e-\x1f\x81\x8d\x8f\x90\x9d]")  # bytes that no text in Windows-1252 has
_NAMED = re.compile(r"sep=(.)\s*")  # the first line of some files of Excel


@record
class Habits:
    """How a file of rows is written, as far as it does not show.

    Args:
        header: whether the first row has the names of the columns; without it, columns are named column_1, column_2, …
        separator: the character between two cells; by default a comma, semicolon, tab, bar or spaces, whichever divides all
            rows alike.
        encoding: character encoding; by default UTF-8, UTF-16 if the file says so, else Windows-1252.
        missing: further texts that stand for a missing value, beside nothing, NA, N/A, NaN, null, None and ?.
        count: number of columns of the training file, if it has no header.
        target: name of the column that may be absent, if there is no header.
    """

    header: bool | None = None
    separator: str | None = None
    encoding: str | None = None
    missing: tuple[str, ...] = ()
    count: Count | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        if self.separator is not None and (len(self.separator) != 1 or self.separator in '\r\n"'):
            raise UserError(
                "E110", f"separator must be one character; got {self.separator!r}", 'for example ";"', path=("separator",)
            )
        if self.encoding is not None:
            try:
                b"abcd".decode(self.encoding, "replace")  # refuses codecs of bytes, too
            except (LookupError, UnicodeError) as error:
                message = f'encoding "{self.encoding}" is not known'
                raise UserError("E110", message, '"utf-8", "cp1252" or "utf-16"', path=("encoding",)) from error


@dataclass(frozen=True)
class Delimited:
    """A file of rows, as text by columns: each column is a few long strings, so that memory does not grow with its cells.

    Args:
        path: of the file.
        names: of the columns.
        lines: number of the line at which each row ends, (rows,).
        habits: how the file is written.
        separator: the character between two cells.
        chunks: of each column, its cells in parts.
    """

    path: Path
    names: Sequence[str]
    lines: npt.NDArray[np.int64]
    habits: Habits
    separator: str
    chunks: Sequence[Sequence[str]]

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def paths(self) -> Sequence[Path]:
        """The file."""
        return [self.path]

    @property
    def splits(self) -> Mapping[str, range]:
        """All rows, as training data."""
        return {"train": range(len(self))}

    def texts(self, name: str) -> list[str]:
        """The cells of a column, without leading and trailing spaces."""
        return [cell.strip() for chunk in self.chunks[self.names.index(name)] for cell in chunk.split(_BETWEEN)]

    def column(self, name: str) -> Column:
        numbers: dict[str, int] = {}
        texts = self.texts(name)
        codes: Codes = np.fromiter((numbers.setdefault(text, len(numbers)) for text in texts), np.int32, len(texts))
        words = list(numbers)
        gaps = np.array([is_missing(word) or word in self.habits.missing for word in words], bool)
        return Column(name=name, place=self._place, words=words, codes=codes, gaps=gaps)

    def _place(self, row: int) -> str:
        return f"{self.path}, line {self.lines[row]}"


def read_rows(path: Path, habits: Habits | None = None) -> Delimited:
    """Read a file of rows: a header with unique names, then rows with one cell for each name; empty lines are ignored.

    Raises:
        UserError: E130 if the file is missing or has no rows, E131 if it is no such file; the message gives the line.
    """
    habits = habits or Habits()
    if not path.is_file():
        raise UserError("E130", f"no table at {path}", "check the path")
    encoding = habits.encoding or _encoding(path)
    try:
        with path.open(encoding=encoding, newline="") as file:
            separator, skipped = _separator(file, habits)
        with path.open(encoding=encoding, newline="") as file:
            for _ in range(skipped):
                next(file)
            first, chunks, lines = _columns(
                _rows(file, separator, strict=True), path, skipped, named=habits.header is not False
            )
    except csv.Error as error:
        raise UserError(
            "E131", f"{path} is no .csv file: {error}", "close every quote, and write a quote in quotes twice"
        ) from error
    except (UnicodeError, OSError) as error:
        message = f"{path} is no .csv file in {encoding.upper().removesuffix('-SIG')}: {error}"
        raise UserError("E131", message, 'save it in UTF-8, or give its encoding = "…"') from error
    if not first:
        raise UserError("E130", f"{path} is empty", "write a header with the names of the columns, then rows")
    if not lines:
        raise UserError("E130", f"{path} has no rows after its header", "give at least one row, or header = false")
    found = Delimited(path, first, np.array(lines, np.int64), habits, separator, chunks)
    return _with_names(found)


def _with_names(table: Delimited) -> Delimited:
    """The table with the names of its columns, checked."""
    if table.habits.header is False:
        return _replaced(table, _positions(table))
    names = list(table.names)
    if table.habits.header is None and _looks_like_data(table):
        message = f"{table.path}: line 1 has no names but values: {', '.join(names[:4])}{', …' * (len(names) > 4)}"  # noqa: PLR2004
        raise UserError("E131", message, "write header = false if the file has no header, or header = true if these are names")
    if len(names) > 1 and not names[-1] and not any(part.strip(f" {_BETWEEN}") for part in table.chunks[-1]):
        return _with_names(_replaced(table, names[:-1], len(names) - 1))  # every row ends with a separator
    unnamed = [position for position, name in enumerate(names) if not name]
    if unnamed and not (unnamed == [0] and len(names) > 1 and _counts(table)):
        raise UserError("E131", f"{table.path}: column {unnamed[0] + 1} has no name", "name every column in line 1")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise UserError("E131", f'{table.path} has two columns named "{twice[0]}"', "rename one of them")
    return table


def _positions(table: Delimited) -> list[str]:
    """The names of the columns of a table without a header; the target may be absent from a table that is predicted."""
    count, habits = len(table.names), table.habits
    if habits.count is None or count == habits.count:
        return [name_of_position(k) for k in range(count)]
    names = [name_of_position(k) for k in range(habits.count) if name_of_position(k) != habits.target]
    if count != len(names):
        message = f"{table.path} has {count} columns, the training table {habits.count} and no header"
        raise UserError("E131", message, f"give the same columns, with or without {habits.target}")
    return names


def _replaced(table: Delimited, names: Sequence[str], columns: int | None = None) -> Delimited:
    return Delimited(table.path, names, table.lines, table.habits, table.separator, table.chunks[:columns])


def _counts(table: Delimited) -> bool:
    """Whether the first column numbers the rows, as the index that pandas writes without a name."""
    numbers = [number_of(text) for chunk in table.chunks[0][:1] for text in chunk.split(_BETWEEN)[:_SAMPLE]]
    return all(number is not None and number == (numbers[0] or 0) + k for k, number in enumerate(numbers))


def _looks_like_data(table: Delimited) -> bool:
    """Whether above every column of numbers, of which there is at least one, stands a number."""
    numeric = []
    for name, chunks in zip(table.names, table.chunks, strict=True):
        cells = [cell.strip() for cell in chunks[0].split(_BETWEEN)[:_SAMPLE]]
        present = [cell for cell in cells if not is_missing(cell)]
        if present and all(_is_number(cell) for cell in present):
            numeric.append(_is_number(name))
    return bool(numeric) and all(numeric)


def _is_number(text: str) -> bool:
    return number_of(text) is not None or number_of(text, comma=True) is not None


def _encoding(path: Path) -> str:
    """The encoding of a text: what its byte-order mark says, UTF-8 if it is valid, else Windows-1252."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    other = False
    with path.open("rb") as file:
        start = file.read(2)
        if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
        file.seek(0)
        while block := file.read(_BLOCK):
            try:
                decoder.decode(block)
            except UnicodeDecodeError:
                other = True
            if _UNDEFINED.search(block) and (other or _CONTROL.search(block.decode("latin-1"))):
                raise UserError(
                    "E131", f"{path} is no .csv file in UTF-8: it has bytes that no text has", "save it again as text"
                )
    return "cp1252" if other else "utf-8-sig"


def _separator(file: TextIO, habits: Habits) -> tuple[str, int]:
    """The character between cells, and how many lines to skip before the first row."""
    start = list(islice(file, 4 * _SAMPLE))
    named = _NAMED.fullmatch(start[0]) if start else None
    if habits.separator is not None or named is not None:
        return habits.separator or (named[1] if named else ","), int(named is not None)
    best, score = ",", 0.0
    for separator in _SEPARATORS:
        try:
            counts = Counter(len(row) for row, _ in islice(_rows(iter(start), separator, strict=False), _SAMPLE))
        except csv.Error:
            continue
        most, times = counts.most_common(1)[0] if counts else (0, 0)
        if most > 1 and times / counts.total() > score:
            best, score = separator, times / counts.total()
    return best, 0


def _rows(file: Iterator[str], separator: str, *, strict: bool) -> Iterator[tuple[list[str], int]]:
    """(cells, number of the line) of each row that is not empty."""
    lines = (f"{' '.join(line.split())}\n" for line in file) if separator == " " else file
    reader = csv.reader(lines, delimiter=separator, strict=strict, skipinitialspace=True)
    for row in reader:
        if any(row):
            yield row, reader.line_num


def _columns(
    rows: Iterator[tuple[list[str], int]], path: Path, skipped: int, *, named: bool
) -> tuple[list[str], list[list[str]], list[int]]:
    """(first row, chunks of every column, line numbers); without names, the first row is one of the data, too."""
    first: list[str] = []
    lines: list[int] = []
    chunks: list[list[str]] = []
    part: list[list[str]] = []
    for row, line in rows:
        if not first:
            first, chunks = [cell.strip() for cell in row], [[] for _ in row]
            if named:
                continue
        if len(row) != len(first):
            other = "header" if named else "first row"
            message = f"{path}, line {line + skipped}: the row has {len(row)} cells, the {other} {len(first)}"
            raise UserError("E131", message, "correct the row; a cell with a separator must be in quotes")
        part.append(row)
        lines.append(line + skipped)
        if len(part) == _ROWS:
            _append(chunks, part, path, lines)
    if part:
        _append(chunks, part, path, lines)
    return first, chunks, lines


def _append(chunks: list[list[str]], part: list[list[str]], path: Path, lines: Sequence[int]) -> None:
    for column, cells in zip(chunks, zip(*part, strict=True), strict=True):
        joined = _BETWEEN.join(cells)
        if joined.count(_BETWEEN) != len(cells) - 1:
            row = next(row for row, cell in enumerate(cells) if _BETWEEN in cell)
            place = f"{path}, line {lines[len(lines) - len(part) + row]}"
            raise UserError("E131", f"{place}: a cell contains the control character U+001F", "remove it")
        column.append(joined)
    part.clear()
