"""Columns of a .parquet file, through pyarrow, which is not installed with Mirabelle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mirabelle.errors import UserError, first_line


def read_parquet(path: Path) -> dict[str, list[Any]]:
    """Every column by name, as Python values, None where one is missing.

    Raises:
        UserError: E160 without pyarrow, E130 when the file is missing, E131 when it is none.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("E160", f"parquet files need pyarrow: {error}", "pip install 'mirabelle[parquet]'") from error
    if not path.is_file():
        raise UserError("E130", f"no table at {path}", "check the path")
    try:
        found: dict[str, list[Any]] = parquet.read_table(path).to_pydict()
    except Exception as error:
        raise UserError("E131", f"{path} is no .parquet file: {first_line(error)}", "save it again") from error
    return found
