"""Read the columns of a .parquet file with pyarrow, an optional dependency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mirabelle.errors import UserError, first_line
from mirabelle.task.preprocessing.cells import is_missing
from mirabelle.task.preprocessing.columns import Column, Values

_DAY = 86400 * 10**6  # microseconds
_BLOCK = 1 << 16  # rows that are read at once


class ParquetTable:
    """A table in a .parquet file; a column is read when it is asked for, so that only its values are in memory.

    Args:
        path: of the file.
        missing: texts that stand for a missing value, beside those of `is_missing`.

    Raises:
        UserError: E160 if pyarrow is not installed, E130 if the file is missing or has no rows, E131 if it is not a .parquet
            file.
    """

    separator = ""

    def __init__(self, path: Path, missing: Sequence[str] = ()) -> None:
        self.path, self._missing = path, missing
        self._file = _opened(path)
        self.names: Sequence[str] = self._file.schema_arrow.names
        if not len(self):
            raise UserError("E130", f"{path} has no rows", "give at least one")

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def column(self, name: str) -> Column:
        """The cells of a column.

        Raises:
            UserError: E131 for a column that has no numbers, truth values, dates or texts.
        """
        import pyarrow as pa

        kind = self._file.schema_arrow.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
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
        for batch in self._file.iter_batches(_BLOCK, columns=[name], use_threads=False):
            yield slice(start, start + len(batch)), batch.column(0)
            start += len(batch)

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
        return f"{self.path}, row {row + 1}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


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
