"""Raw inputs from the lines of a text file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mirabelle.errors import UserError, first_line

SUFFIXES = (".txt",)
REMEDY = "give a .txt file with one text on each line"


def lines_of(path: Path, *, pairs: bool = False) -> Iterator[tuple[str, Any]]:
    """(name, text) of each line that is not empty; the name is "file:number", counted from 1.

    Args:
        path: a text file in UTF-8.
        pairs: whether each line contains two texts separated by a tab, which are returned as a tuple.

    Raises:
        UserError: E130 for a file without text, E131 if it is not UTF-8, or a line does not contain a pair.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise UserError("E131", f"{path} is no text file in UTF-8: {first_line(error)}", "save it in UTF-8") from error
    if not any(line.strip() for line in lines):
        raise UserError("E130", f"{path} is empty", "write one text on each line")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            parts = tuple(line.split("\t"))
            if pairs and len(parts) != 2:  # noqa: PLR2004
                message = f"{path}, line {number}: the model takes pairs of texts"
                raise UserError("E131", message, "separate the two texts by one tab")
            yield f"{path}:{number}", parts if pairs else line
