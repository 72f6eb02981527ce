"""Read the columns of a .parquet file, or of a folder of them, with pyarrow, an optional dependency."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from mirabelle.errors import UserError, first_line
from mirabelle.sources.datasets.cache import gone
from mirabelle.sources.datasets.folders import SPLITS, Kind, by_name_of_split, split_folders
from mirabelle.task.preprocessing.cells import is_missing
from mirabelle.task.preprocessing.columns import Column, Values

_DAY = 86400 * 10**6  # microseconds
_BLOCK = 1 << 16  # rows that are read at once


KIND = Kind("table", "tables", (".parquet",), "directly in it, or else in its folders train, validation and test")


@dataclass(frozen=True)
class _File:
    """A file of a table, as it was when it was first seen.

    Args:
        path: of the file.
        rows: their number.
        types: of the columns, by name; of a column of codes, that of its words.
        written: size in bytes and time of the last change.
    """

    path: Path
    rows: int
    types: Mapping[str, Any]
    written: tuple[int, int]

    @staticmethod
    def at(path: Path) -> _File:
        with _opened(path) as file:
            types = {field.name: _plain_type(field.type) for field in file.schema_arrow}
            twice = next((name for name in types if file.schema_arrow.names.count(name) > 1), None)
            if twice is not None:
                raise UserError("E131", f'{path} has two columns named "{twice}"', "rename one of them")
            return _File(path, int(file.metadata.num_rows), types, _written(path))

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """The file, which must be the same as before."""
        try:
            if _written(self.path) != self.written:
                message = f"{self.path} has changed since it was first read"
                raise UserError("E131", message, "run the same command again, and do not change data that are being read")
            with _opened(self.path) as file:
                yield file
        except FileNotFoundError as error:
            raise gone(self.path) from error


class ParquetTable:
    """A table in a .parquet file, or in the files of a folder; a column is read when it is asked for.

    Thus only its values are in memory. The files of a folder follow each other in the order of their names. Folders train,
    validation (or val, valid) and test in it are the splits, or files whose names all begin with a split, as "train-0.parquet".

    Args:
        path: of the file or folder.
        missing: texts that stand for a missing value, beside those of `is_missing`.

    Raises:
        UserError: E160 if pyarrow is not installed, E130 if the file is missing or has no rows, E131 if it is not a .parquet
            file, or files differ in their columns or types.
    """

    separator = ""

    def __init__(self, path: Path, missing: Sequence[str] = ()) -> None:
        self.path, self._missing = path, missing
        groups = {name: [_File.at(one) for one in paths] for name, paths in _paths(path).items()}
        self._files = [file for group in groups.values() for file in group]
        first = self._files[0]
        for file in self._files:
            _check_same_columns(first, file)
        self.names: Sequence[str] = list(first.types)
        self._ends = list(accumulate(file.rows for file in self._files))
        counts = {name: sum(file.rows for file in group) for name, group in groups.items()}
        for name, count in counts.items():
            if not count:
                place = path if name == "train" else f"{path}, {name},"
                raise UserError("E130", f"{place} has no rows", "give at least one")
        ends = dict(zip(counts, accumulate(counts.values()), strict=True))
        self.splits = {name: range(ends[name] - count, ends[name]) for name, count in counts.items()}

    @property
    def paths(self) -> Sequence[Path]:
        """The files."""
        return [file.path for file in self._files]

    def __len__(self) -> int:
        return self._ends[-1]

    def column(self, name: str) -> Column:
        """The cells of a column.

        Raises:
            UserError: E131 for a column that has no numbers, truth values, dates or texts.
        """
        import pyarrow as pa

        kind = self._files[0].types[name]
        try:
            if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
                return Column(name=name, place=self._place, values=self._values(name, pa.float64()))
            if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
                days = self._values(name, pa.timestamp("us"), pa.int64(), pa.float64())
                days /= _DAY
                return Column(name=name, place=self._place, values=days, days=True)
            if any(
                fits(kind) for fits in (pa.types.is_boolean, pa.types.is_null, pa.types.is_string, pa.types.is_large_string)
            ):
                return self._texts(name)
        except (pa.ArrowException, OSError) as error:
            raise UserError("E131", f'{self.path}, column "{name}": {first_line(error)}', "save it again") from error
        finally:
            pa.default_memory_pool().release_unused()
        raise UserError("E131", f'{self.path}, column "{name}" has values of type {kind}', "name it under ignore")

    def _parts(self, name: str) -> Iterator[tuple[slice, Any]]:
        """(rows, cells) of a column in small parts, so that next to nothing is in memory twice."""
        start = 0
        for file in self._files:
            with file.opened() as opened:
                ends = start + file.rows
                for batch in opened.iter_batches(_BLOCK, columns=[name], use_threads=False):
                    rows = slice(start, start + len(batch))
                    start = rows.stop
                    if start > ends:
                        raise _lying(file)
                    yield rows, batch.column(0)
                if start != ends:
                    raise _lying(file)

    def _values(self, name: str, *types: Any) -> Values:
        """The cells as numbers, NaN where they are missing, cast to one type after the other."""
        values = np.empty(len(self), np.float64)
        for rows, part in self._parts(name):
            for kind in types:
                part = part.cast(kind, safe=False)  # noqa: PLW2901 (cast again)
            values[rows] = part.to_numpy(zero_copy_only=False)  # null becomes NaN
        for number in (number for number in map(_number, self._missing) if number is not None):
            values[values == number] = np.nan
        return values

    def _texts(self, name: str) -> Column:
        import pyarrow as pa

        codes = np.empty(len(self), np.int32)
        numbers: dict[str, int] = {}
        for rows, cells in self._parts(name):
            part = cells if pa.types.is_dictionary(cells.type) else cells.dictionary_encode()
            words = ["" if word is None else str(word).strip() for word in part.dictionary.to_pylist()]
            positions = np.array(
                [numbers.setdefault(word, len(numbers)) for word in (*words, *[""] * bool(part.null_count))], np.int32
            )
            codes[rows] = positions[part.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)]
        gaps = np.array([is_missing(word) or word in self._missing for word in numbers], bool)
        return Column(name=name, place=self._place, words=list(numbers), codes=codes, gaps=gaps)

    def _place(self, row: int) -> str:
        file = bisect_right(self._ends, row)
        return f"{self._files[file].path}, row {row - self._ends[file] + self._files[file].rows + 1}"


def _lying(file: _File) -> UserError:
    message = f"{file.path} is damaged: it says that it has {file.rows:,} rows, and has another number of them"
    return UserError("E131", message, "save it again")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _paths(path: Path) -> dict[str, list[Path]]:
    """The files by split."""
    if not path.is_dir():
        return {"train": [path]}
    own = KIND.files(path)
    if own:
        return by_name_of_split(own) or {"train": own}
    inside = split_folders(path)
    found = {name: KIND.files(inside[name]) for name in SPLITS if name in inside}
    for name, paths in found.items():
        if not paths:
            remedy = "put the files of the table into the folder itself, or into folders train, validation and test"
            raise UserError("E130", f"no .parquet file directly in {inside[name]}", remedy)
    return found


def _check_same_columns(first: _File, other: _File) -> None:
    for name in (*first.types, *other.types):
        here, there = first.types.get(name), other.types.get(name)
        if here != there:
            places = " and ".join(
                f"{'absent from' if kind is None else f'{kind} in'} {file.path}"
                for kind, file in ((here, first), (there, other))
            )
            remedy = "save both files with the same columns and types, or move one of them to another folder"
            raise UserError("E131", f'the files of a table must have the same columns; "{name}" is {places}', remedy)


def _plain_type(kind: Any) -> Any:
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _written(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _opened(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("E160", f"parquet files need pyarrow: {error}", "pip install 'mirabelle[parquet]'") from error
    if not path.is_file():
        raise UserError("E130", f"no table at {path}", "check the path")
    try:
        return parquet.ParquetFile(path)
    except Exception as error:
        raise UserError("E131", f"{path} is not a .parquet file: {first_line(error)}", "save it again") from error


def read_parquet(path: Path) -> dict[str, list[Any]]:
    """The columns of a .parquet file by name, as lists of Python values; missing values are None.

    Raises:
        UserError: E160 if pyarrow is not installed, E130 if the file is missing, E131 if it is not a .parquet file.
    """
    file = _opened(path)
    try:
        found: dict[str, list[Any]] = file.read().to_pydict()
    except Exception as error:
        raise UserError("E131", f"{path} is not a .parquet file: {first_line(error)}", "save it again") from error
    return found
