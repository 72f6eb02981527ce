"""Rows of texts by column out of a file: .tsv, .csv, .jsonl, .parquet, or lines that a pattern takes apart."""

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

_PARTS = 2  # of a line: what it is, and the text


@dataclass(frozen=True)
class TextRows:
    """Rows of texts by column, and the line at which each stands."""

    path: Path
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    lines: Sequence[int]

    def column(self, name: str) -> list[str]:
        """As text.

        Raises:
            UserError: E131 naming the line where it is missing or empty.
        """
        found = []
        for row, line in zip(self.rows, self.lines, strict=True):
            value = row.get(name)
            if value is None or isinstance(value, (dict, list)) or not str(value).strip():
                raise UserError(
                    "E131", f'{self.path}, line {line}: "{name}" is missing or empty', "write it, or leave out the row"
                )
            found.append(str(value))
        return found


def read_text_rows(path: Path, *, pattern: str | None = None, columns: Sequence[str] = (), encoding: str = "utf-8") -> TextRows:
    """The rows of a file, by its suffix; with a pattern of any file's lines.

    Args:
        path: of the file.
        pattern: a regular expression that every line matches as a whole; its two groups are the `columns`.
        columns: names of what the groups hold.
        encoding: of the letters.

    Raises:
        UserError: E130 when it is missing or empty, E131 with the line at which it is no such file, E110 for a pattern that is
            none, E160 a .parquet without pyarrow.
    """
    if not path.is_file():
        raise UserError("E130", f"no texts at {path}", 'paths are relative to the recipe; "~" is not expanded')
    suffix = path.suffix.lower()
    if pattern is None and suffix == ".parquet":
        found = read_parquet(path)
        rows = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
        table = TextRows(path, list(found), rows, range(1, len(rows) + 1))
    else:
        lines = _lines(path, encoding)
        if pattern is not None:
            table = _of_pattern(path, lines, pattern, columns)
        elif suffix == ".jsonl":
            table = _of_json(path, lines)
        elif suffix in (".tsv", ".csv"):
            table = _of_columns(path, lines, "\t" if suffix == ".tsv" else ",")
        else:
            remedy = "write pattern = '([A-Z]+):[a-z]+ (.+)', say, of the class and the text"
            raise UserError("E131", f"{path} has no columns, so what its lines hold is not known", remedy)
    if not table.rows:
        raise UserError("E130", f"{path} has no row", "give at least one")
    return table


def _lines(path: Path, encoding: str) -> list[str]:
    try:
        return path.read_text("utf-8-sig" if encoding == "utf-8" else encoding).splitlines()
    except UnicodeDecodeError as error:
        message = f"{path} is no text in {encoding.upper()}: {error}"
        raise UserError("E131", message, 'save it in UTF-8, or name its encoding, "latin-1" say') from error


def _of_pattern(path: Path, lines: Sequence[str], pattern: str, columns: Sequence[str]) -> TextRows:
    """Lines that are not empty, taken apart."""
    say = "write pattern = '([A-Z]+):[a-z]+ (.+)', say"
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError("E110", f'"{pattern}" is no regular expression: {error}', say) from error
    if expression.groups != _PARTS:
        message = f'"{pattern}" has {expression.groups} groups; two are needed, of the class and of the text'
        raise UserError("E110", message, say)
    rows, places = [], []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            found = expression.fullmatch(line)
            if found is None:
                raise UserError("E131", f'{path}, line {number}: "{line[:40]}" does not match "{pattern}"', "mend one of them")
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
                raise UserError("E131", f"{path}, line {number} is no JSON: {error}", "write one object a line") from error
            if not isinstance(row, dict):
                raise UserError("E131", f"{path}, line {number} is no JSON object", 'write {"text": …, "label": …}')
            rows.append(row)
            places.append(number)
    return TextRows(path, list(rows[0]) if rows else [], rows, places)


def _of_columns(path: Path, lines: Sequence[str], separator: str) -> TextRows:
    """A header and rows; in a .tsv quotation marks are what they are, letters of a text."""
    text = (f"{line}\n" for line in lines)
    reader = csv.reader(text) if separator == "," else csv.reader(text, delimiter=separator, quoting=csv.QUOTE_NONE)
    header = [name.strip() for name in next(reader, [])]
    rows, places = [], []
    for row in reader:
        if row:
            if len(row) != len(header):
                message = f"{path}, line {reader.line_num}: {len(row)} cells under a header of {len(header)}"
                raise UserError("E131", message, "mend the row")
            rows.append(dict(zip(header, row, strict=True)))
            places.append(reader.line_num)
    return TextRows(path, header, rows, places)
