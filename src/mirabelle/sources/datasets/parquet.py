"""Read the columns of a .parquet file with pyarrow, an optional dependency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mirabelle.errors import UserError, first_line


def read_parquet(path: Path) -> dict[str, list[Any]]:
    """The columns of a .parquet file by name, as lists of Python values; missing values are None.

    Raises:
        UserError: E160 if pyarrow is not installed, E130 if the file is missing, E131 if it is not a .parquet file.
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
        raise UserError("E131", f"{path} is not a .parquet file: {first_line(error)}", "save it again") from error
    return found
