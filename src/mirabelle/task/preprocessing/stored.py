"""Preprocessing as the JSON text that is stored inside a model: strict, short, and free of paths and code."""

from __future__ import annotations

import json
from collections.abc import Mapping

from mirabelle import records
from mirabelle.errors import UserError
from mirabelle.task.preprocessing.characters import Characters
from mirabelle.task.preprocessing.image import Image
from mirabelle.task.preprocessing.kaldi import Kaldi
from mirabelle.task.preprocessing.raw_inputs import Preprocessing
from mirabelle.task.preprocessing.sound import Sound
from mirabelle.task.preprocessing.table import Table
from mirabelle.task.preprocessing.text import Text
from mirabelle.task.preprocessing.waveform import Waveform

KINDS: tuple[type[Preprocessing], ...] = (Image, Sound, Waveform, Kaldi, Table, Text, Characters)
FILE_CONTENTS: Mapping[str, str] = {
    suffix: kind.file_content for kind in KINDS if kind.file_content for suffix in kind.suffixes
}  # content of a file by its suffix


def to_json(preprocessing: Preprocessing) -> str:
    """The preprocessing as JSON text without spaces, because every byte of the packed file counts.

    Example:
        >>> to_json(Image(size=(8, 8)))
        '{"size":[8,8]}'
        >>> from_json(to_json(Image(size=(8, 8)))) == Image(size=(8, 8))
        True
    """
    return json.dumps(preprocessing.to_data(), separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def from_json(text: str) -> Preprocessing:
    """The preprocessing from the text of `to_json`.

    Raises:
        UserError: E141 if the text is not valid.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(f"it is not valid JSON: {error}") from error
    kinds = [kind for kind in KINDS if isinstance(data, dict) and kind.key in data]
    if len(kinds) != 1:
        raise _damaged("its kind is unknown")
    try:
        return records.build(kinds[0], data, "preprocessing")
    except UserError as error:
        raise _damaged(error.message[:200]) from error


def _damaged(reason: str) -> UserError:
    return UserError("E141", f"the stored preprocessing is damaged: {reason}", "download or copy the file again")
