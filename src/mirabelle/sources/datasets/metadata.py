"""Read metadata.csv, the table of files and their texts in a folder, as data sets of Hugging Face have it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from mirabelle.errors import UserError

NAME = "metadata.csv"
_FILE = "file_name"


def texts_of_files(folder: Path, columns: Sequence[str]) -> dict[Path, str]:
    """The text of each file, in the order of the table.

    Args:
        folder: with metadata.csv, whose column `file_name` has paths inside of the folder.
        columns: names that the column of texts may have; the first that the table has is read.

    Raises:
        UserError: E130 if the table or a file is missing, E131 if it lacks a column, has no rows, or names a file outside of
            the folder.
    """
    place = folder / NAME
    if not place.is_file():
        message = f"{folder} contains no {NAME}"
        raise UserError("E130", message, f"write one with the columns {_FILE} and {columns[0]}")
    try:
        with place.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError("E131", f"{place} cannot be read: {error}", "save it as UTF-8, with commas") from error
    column = next((name for name in columns if rows and name in rows[0]), None)
    if column is None or _FILE not in rows[0]:
        given = ", ".join(str(name) for name in rows[0]) if rows else "no rows"
        raise UserError("E131", f"{place} has {given}", f"give it the columns {_FILE} and {' or '.join(columns)}")
    found: dict[Path, str] = {}
    for line, row in enumerate(rows, start=2):
        path = folder / (row[_FILE] or "")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError("E131", f"{place}, line {line}: {row[_FILE]} is outside of the folder", "name files inside of it")
        if not path.is_file():
            raise UserError(
                "E130", f"{place}, line {line}: there is no file {row[_FILE]}", "correct the name, or remove the row"
            )
        found[path] = row[column] or ""
    return found
