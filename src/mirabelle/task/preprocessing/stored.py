"""Preprocessing to and from the text that travels inside a model: strict, short, and free of paths and code."""

from __future__ import annotations

import json
from typing import TypeAlias

from mirabelle import records
from mirabelle.errors import UserError
from mirabelle.task.preprocessing.characters import Characters
from mirabelle.task.preprocessing.image import Image
from mirabelle.task.preprocessing.sound import Sound
from mirabelle.task.preprocessing.table import Table
from mirabelle.task.preprocessing.text import Text

Preprocessing: TypeAlias = Image | Sound | Table | Text | Characters
_KINDS: dict[str, type[Preprocessing]] = {
    "size": Image,
    "rate": Sound,
    "columns": Table,
    "tokenizer": Text,
    "characters": Characters,
}  # the key that only this kind has


def to_json(preprocessing: Preprocessing) -> str:
    """The shortest text that says it; it lies in the packed file, where every byte counts.

    Example:
        >>> to_json(Image(size=(8, 8)))
        '{"size":[8,8]}'
        >>> from_json(to_json(Image(size=(8, 8)))) == Image(size=(8, 8))
        True
    """
    return json.dumps(preprocessing.to_data(), separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def from_json(text: str) -> Preprocessing:
    """What `to_json` wrote.

    Raises:
        UserError: E141 when the text says anything else.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(f"it is no JSON: {error}") from error
    kinds = [kind for key, kind in _KINDS.items() if isinstance(data, dict) and key in data]
    if len(kinds) != 1:
        raise _damaged("it is of no known kind")
    try:
        return records.build(kinds[0], data, "preprocessing")
    except UserError as error:
        raise _damaged(error.message[:200]) from error


def shapes_of(preprocessing: Preprocessing) -> list[tuple[int, ...]]:
    """Of the model's inputs, without the batch."""
    return list(preprocessing.shapes) if isinstance(preprocessing, Text) else [preprocessing.shape]


def _damaged(reason: str) -> UserError:
    return UserError("E141", f"the stored preprocessing is damaged: {reason}", "fetch the file again")
