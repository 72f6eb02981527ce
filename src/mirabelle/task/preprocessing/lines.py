"""Raw texts from the lines of a text file, and from the rows of files like those that a model was trained on."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mirabelle.errors import UserError, first_line

SUFFIXES = (".txt",)
ROWS = (".tsv", ".csv", ".jsonl")
TAGGED = (".conll", ".conllu", ".bio", ".iob", ".iob2")
QUESTIONS = ".json"
REMEDY = "give a .txt file with one text on each line"


def lines_of(path: Path, *, pairs: bool = False) -> Iterator[tuple[str, Any]]:
    """(name, text) of each line that is not empty; the name is "file:number", counted from 1.

    Args:
        path: a text file in UTF-8.
        pairs: whether each line contains two texts separated by a tab, which are returned as a tuple.

    Raises:
        UserError: E130 for a file without text, E131 if it is not UTF-8, or a line does not contain a pair.
    """
    lines = _text(path).splitlines()
    if not any(line.strip() for line in lines):
        raise UserError("E130", f"{path} is empty", "write one text on each line")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            parts = tuple(line.split("\t"))
            if pairs and len(parts) != 2:  # noqa: PLR2004
                message = f"{path}, line {number}: the model takes pairs of texts"
                raise UserError("E131", message, "separate the two texts by one tab")
            yield f"{path}:{number}", parts if pairs else line


def rows_of(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(name, text) of each row of a file with columns, .tsv, .csv or .jsonl; other columns, such as labels, are not read.

    Args:
        path: a file in UTF-8 with a header, or with one JSON object in each line.
        columns: names of the column of the text, and of that of the second text of a pair. A list of words is joined.

    Raises:
        UserError: E130 for a file without rows, E131 if it cannot be read or a row has no such column.
    """
    numbered = [(number, line) for number, line in enumerate(_text(path).splitlines(), start=1) if line.strip()]
    rows: list[tuple[int, Mapping[str, Any]]] = []
    if path.suffix.lower() == ".jsonl":
        for number, line in numbered:
            row = _parsed(path, line, f", line {number}")
            rows.append((number, row if isinstance(row, dict) else {}))
    else:
        given = (f"{line}\n" for _, line in numbered)
        of_tabs = path.suffix.lower() == ".tsv"
        reader = csv.DictReader(given, delimiter="\t", quoting=csv.QUOTE_NONE) if of_tabs else csv.DictReader(given)
        rows = [(reader.line_num, row) for row in reader]
    if not rows:
        raise UserError("E130", f"{path} has no rows", "give at least one below the header")
    for number, row in rows:
        values = [row.get(name) for name in columns]
        cells = [" ".join(map(str, value)) if isinstance(value, list) else value for value in values]
        absent = next((name for name, cell in zip(columns, cells, strict=True) if not isinstance(cell, str) or not cell), None)
        if absent is not None:
            message = f'{path}, line {number} has no text in "{absent}", the column that the model was trained on'
            raise UserError("E131", message, "name the column so, or give a .txt file with one text on each line")
        yield f"{path}:{number}", tuple(cells) if len(cells) > 1 else cells[0]


def tagged_lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of each text in a file of one word in each line with an empty line after each text; tags are not read.

    Raises:
        UserError: E130 for a file without text, E131 if it is not UTF-8.
    """
    words: list[str] = []
    start, wide, found = 1, path.suffix.lower() == ".conllu", False
    for number, line in enumerate((*_text(path).splitlines(), ""), start=1):
        cells = line.split("\t") if wide else line.split()
        if not line.strip():
            if words:
                found = True
                yield f"{path}:{start}", " ".join(words)
            words, start = [], number + 1
        elif not line.startswith("-DOCSTART-") and not (wide and (len(cells) == 1 or not cells[0].isdigit())):
            words.append(cells[1 if wide else 0])
    if not found:
        raise UserError("E130", f"{path} is empty", "write one word in each line")


def questions_of(path: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """(id, (question, paragraph)) of each question of a .json file in SQuAD's format; answers are not read.

    Raises:
        UserError: E131 if the file is not in this format.
    """
    data = _parsed(path, _text(path), "")
    try:
        found = [
            (str(asked.get("id", place)), (str(asked["question"]), str(paragraph["context"])))
            for article in data["data"]
            for paragraph in article["paragraphs"]
            for place, asked in enumerate(paragraph["qas"])
        ]
    except (TypeError, KeyError, AttributeError) as error:
        message = f"{path} is not in SQuAD's format: {first_line(error)}"
        raise UserError("E131", message, "give a .txt file with a question, a tab and a paragraph on each line") from error
    yield from found


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise UserError("E131", f"{path} is no text file in UTF-8: {first_line(error)}", "save it in UTF-8") from error


def _parsed(path: Path, text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError("E131", f"{path}{place} is not valid JSON: {first_line(error)}", "correct it") from error
