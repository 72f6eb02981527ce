"""Read the columns of a .parquet file with pyarrow, an optional dependency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mirabelle.errors import UserError, first_line
from mirabelle.task.preprocessing.cells import is_missing
from mirabelle.task.preprocessing.columns import Column

_DAY = 86400 * 10**6  # microseconds


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
        try:
            cells = self._file.read(columns=[name]).column(0)
            if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
                return self._numbers(name, cells.cast(pa.float64(), safe=False))
            if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
                moments = cells.cast(pa.timestamp("us"), safe=False)
                days = self._numbers(name, moments.cast(pa.int64()).cast(pa.float64(), safe=False)).values
                assert days is not None, "numbers have values"
                return Column(name=name, place=self._place, values=days / _DAY, days=True)
            if pa.types.is_boolean(kind):
                return self._texts(name, _as_python_writes(cells))
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if (
                pa.types.is_boolean(kind)
                or pa.types.is_null(kind)
                or pa.types.is_string(kind)
                or pa.types.is_large_string(kind)
            ):
                return self._texts(name, cells.cast(pa.string()) if pa.types.is_null(kind) else cells)
        except (pa.ArrowException, OSError) as error:
            raise UserError("E131", f'{self.path}, column "{name}": {first_line(error)}', "save it again") from error
        raise UserError("E131", f'{self.path}, column "{name}" has values of type {kind}', "name it under ignore")

    def _numbers(self, name: str, cells: Any) -> Column:
        values = np.empty(len(cells), np.float64)
        start = 0
        for chunk in cells.chunks:
            values[start : start + len(chunk)] = chunk.to_numpy(zero_copy_only=False)  # null becomes NaN
            start += len(chunk)
        for number in filter(None, map(_number, self._missing)):
            values[values == number] = np.nan
        return Column(name=name, place=self._place, values=values)

    def _texts(self, name: str, cells: Any) -> Column:
        import pyarrow as pa

        whole = cells.unify_dictionaries().combine_chunks() if pa.types.is_dictionary(cells.type) else cells.combine_chunks()
        encoded = whole if pa.types.is_dictionary(whole.type) else whole.dictionary_encode()
        numbers: dict[str, int] = {}
        words = [numbers.setdefault(str(word).strip(), len(numbers)) for word in encoded.dictionary.to_pylist()]
        of_null = numbers.setdefault("", len(numbers)) if encoded.null_count else 0
        positions = np.array([*words, of_null], np.int32)
        codes = positions[encoded.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)]
        gaps = np.array([is_missing(word) or word in self._missing for word in numbers], bool)
        return Column(name=name, place=self._place, words=list(numbers), codes=codes, gaps=gaps)

    def _place(self, row: int) -> str:
        return f"{self.path}, row {row + 1}"


def _as_python_writes(cells: Any) -> Any:
    """Truth values as the texts "True" and "False"."""
    import pyarrow as pa
    from pyarrow import compute

    return pa.chunked_array([compute.if_else(chunk, "True", "False") for chunk in cells.chunks], pa.string())


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
