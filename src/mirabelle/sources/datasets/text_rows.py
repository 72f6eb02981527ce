"""Read rows of text by column from files of several formats, or from lines that a regular expression parses."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirabelle.errors import UserError
from mirabelle.sources.datasets.parquet import read_parquet

_PARTS = 2  # groups of the pattern: the class and the text


@dataclass(frozen=True)
class TextRows:
    """Rows of text by column, with the line number of each row."""

    path: Path
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    lines: Sequence[int]

    def column(self, name: str) -> list[str]:
        """The values of a column as strings.

        Raises:
            UserError: E131 if a value is missing or empty; the message gives the line.
        """
        found = []
        for row, line in zip(self.rows, self.lines, strict=True):
            value = row.get(name)
            if value is None or isinstance(value, (dict, list)) or not str(value).strip():
                raise UserError("E131", f'{self.path}, line {line}: "{name}" is missing or empty', "add it, or remove the row")
            found.append(str(value))
        return found


def read_text_rows(path: Path, *, pattern: str | None = None, columns: Sequence[str] = (), encoding: str = "utf-8") -> TextRows:
    """Read the rows of a text file; the format follows from the suffix, or from the pattern if there is one.

    Args:
        path: of the file.
        pattern: a regular expression that must match every whole line; its two groups are the `columns`.
        columns: names of the groups of the pattern.
        encoding: character encoding of the file.

    Raises:
        UserError: E130 if the file is missing or has no rows, E131 if a line cannot be read (the message gives the line), E110
            if the pattern is not a regular expression, E160 for a .parquet file without pyarrow.
    """
    if not path.is_file():
        raise UserError("E130", f"no texts at {path}", 'paths are relative to the recipe; "~" is not expanded')
    suffix = path.suffix.lower()
    if pattern is None and suffix == ".parquet":
        found = read_parquet(path)
        rows = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
        table = TextRows(path, list(found), rows, range(1, len(rows) + 1))
    else:
        lines = read_lines(path, encoding)
        if pattern is not None:
            table = _of_pattern(path, lines, pattern, columns)
        elif suffix == ".jsonl":
            table = _of_json(path, lines)
        elif suffix == ".txt":
            kept = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
            table = TextRows(path, ["text"], [{"text": line} for _, line in kept], [number for number, _ in kept])
        elif suffix in (".tsv", ".csv"):
            table = _of_columns(path, lines, "\t" if suffix == ".tsv" else ",")
        else:
            remedy = "give a pattern with a group for the class and one for the text, for example '([A-Z]+):[a-z]+ (.+)'"
            raise UserError("E131", f"{path} is a file without columns, and there is no pattern for its lines", remedy)
    if not table.rows:
        raise UserError("E130", f"{path} has no rows", "give at least one")
    return table


def read_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """The lines of a text file.

    Raises:
        UserError: E131 if it is not in this encoding.
    """
    try:
        return path.read_text("utf-8-sig" if encoding == "utf-8" else encoding).splitlines()
    except UnicodeDecodeError as error:
        message = f"{path} is not encoded in {encoding.upper()}: {error}"
        raise UserError("E131", message, 'save it in UTF-8, or give its encoding, for example "latin-1"') from error


def _of_pattern(path: Path, lines: Sequence[str], pattern: str, columns: Sequence[str]) -> TextRows:
    """The rows of all lines that are not empty, parsed by the pattern."""
    remedy = "for example: pattern = '([A-Z]+):[a-z]+ (.+)'"
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError("E110", f'"{pattern}" is not a regular expression: {error}', remedy) from error
    if expression.groups != _PARTS:
        message = f'"{pattern}" has {expression.groups} groups; it needs two, for the class and for the text'
        raise UserError("E110", message, remedy)
    rows, places = [], []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            found = expression.fullmatch(line)
            if found is None:
                raise UserError(
                    "E131", f'{path}, line {number}: "{line[:40]}" does not match "{pattern}"', "correct one of them"
                )
            rows.append(dict(zip(columns, found.groups(), strict=True)))
            places.append(number)
    return TextRows(path, columns, rows, places)


def _of_json(path: Path, lines: Sequence[str]) -> TextRows:
    rows, places = [], []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                message = f"{path}, line {number} is not valid JSON: {error}"
                raise UserError("E131", message, "write one object in each line") from error
            if not isinstance(row, dict):
                raise UserError("E131", f"{path}, line {number} is not a JSON object", 'write {"text": …, "label": …}')
            rows.append(row)
            places.append(number)
    return TextRows(path, list(rows[0]) if rows else [], rows, places)


def _of_columns(path: Path, lines: Sequence[str], separator: str) -> TextRows:
    """The rows of a file with a header; in a .tsv file quotation marks are ordinary characters."""
    text = (f"{line}\n" for line in lines)
    reader = csv.reader(text) if separator == "," else csv.reader(text, delimiter=separator, quoting=csv.QUOTE_NONE)
    header = [name.strip() for name in next(reader, [])]
    rows, places = [], []
    for row in reader:
        if row:
            if len(row) != len(header):
                message = f"{path}, line {reader.line_num}: {len(row)} cells, but the header has {len(header)}"
                raise UserError("E131", message, "correct the row")
            rows.append(dict(zip(header, row, strict=True)))
            places.append(reader.line_num)
    return TextRows(path, header, rows, places)
