"""Transcription: read a folder of recordings with their texts, for a model of CTC."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.sources.datasets.folders import split_folders
from mirabelle.sources.datasets.metadata import texts_of_files
from mirabelle.sources.datasets.sounds import divided
from mirabelle.sources.datasets.splits import as_task
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.settings import SoundFolder

COLUMNS = ("transcription", "text", "sentence")


def task_of(folder: Path, settings: SoundFolder) -> Task:
    """The task of a folder of recordings and texts; the errors are those of `SoundFolder`."""
    if len(settings.labels) < 2 or settings.labels[0]:  # noqa: PLR2004 (the blank and a symbol)
        message = (
            f"labels of a transcription are the symbols of the model, the first is the blank, ''; got {settings.labels[:5]}"
        )
        raise UserError("E110", message, 'labels = ["", " ", "a", "b"]', path=("labels",))
    if not folder.is_dir():
        raise UserError("E130", f"no folder of recordings at {folder}", "paths are relative to the recipe")
    texts = {part: texts_of_files(place, COLUMNS) for part, place in split_folders(folder).items()}
    longest = max(len(text) for own in texts.values() for text in own.values())
    symbols = {name: k for k, name in enumerate(settings.labels) if name}
    targets = {
        part: np.stack([_target(path, text, symbols, longest) for path, text in own.items()]) for part, own in texts.items()
    }
    found = divided({part: list(own) for part, own in texts.items()}, targets, settings)
    of_symbols = replace(settings, loss=settings.loss or "ctc")
    return as_task(found.splits, settings.labels, folder.resolve().name, found.sound, of_symbols).replace(notes=(*found.notes,))


def _target(path: Path, text: str, symbols: dict[str, int], length: int) -> npt.NDArray[np.int64]:
    """The symbols of a text, (length,), padded with −100."""
    unknown = next((character for character in text if character not in symbols), None)
    if unknown is not None:
        message = f'the text of {path}, "{text[:40]}", has "{unknown}", which is no symbol of the model'
        raise UserError("E131", message, f"write it with {''.join(name for name in symbols if len(name) == 1)!r}")
    if not text:
        raise UserError("E131", f"{path} has no text", "remove its row, or write what is said")
    found = np.full(length, UNLABELLED, np.int64)
    found[: len(text)] = [symbols[character] for character in text]
    return found
