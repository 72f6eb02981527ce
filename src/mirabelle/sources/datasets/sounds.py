"""Audio classification: read a folder of recordings, with the class in the name of the subfolder or of the file."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mirabelle.errors import UserError
from mirabelle.sources.datasets.folders import Kind, files_by_split, unread_files
from mirabelle.sources.datasets.splits import Split, as_task, completed
from mirabelle.task.preprocessing.sound import SUFFIXES, Array, Sound, read_wav
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.settings import SoundFolder

KIND = Kind("recording", "recordings", SUFFIXES)
_LONGEST = 10.0  # most seconds of a recording by default


def task_of(folder: Path, settings: SoundFolder) -> Task:
    """The task of a folder of recordings; the errors are those of `SoundFolder`."""
    files = files_by_split(folder, KIND) if settings.pattern is None else {"train": _by_name(folder, settings.pattern)}
    labels = tuple(files["train"])
    rate = settings.rate
    recordings: dict[str, list[Array]] = {}
    for part, classes in files.items():
        recordings[part] = []
        for path in (path for paths in classes.values() for path in paths):
            own, samples = read_wav(path)
            rate = rate or own
            if own != rate:
                message = f"{path} has a sampling rate of {own} Hz, the other recordings of {rate} Hz"
                raise UserError("E131", message, f"resample it to {rate} Hz")
            recordings[part].append(samples)
    assert rate is not None, "every class has a recording"
    longest = max(len(samples) for samples in recordings["train"]) / rate
    sound = Sound(
        rate=rate,
        seconds=settings.seconds or round(min(longest, _LONGEST), 3),
        mels=settings.mels,
        window=settings.window,
        hop=settings.hop,
    )
    raw: dict[str, Split] = {}
    for part, classes in files.items():
        features = np.stack([sound.logarithms(samples) for samples in recordings[part]])
        raw[part] = (features, np.repeat(np.arange(len(classes)), [len(paths) for paths in classes.values()]))
    raw = completed(raw, settings.test_fraction, settings.validation_fraction, settings.seed, labels)
    train = raw["train"][0].astype(np.float64)
    scaled = dataclasses.replace(sound, mean=(float(train.mean()),), deviation=(float(train.std()) or 1.0,))
    cut = sum(len(samples) > round(sound.seconds * rate) for own in recordings.values() for samples in own)
    count = sum(len(own) for own in recordings.values())
    notes = [f"{cut:,} of {count:,} recordings are longer than {sound.seconds:g} s, of which the rest is left out (`seconds`)."]
    read = [path for classes in files.values() for paths in classes.values() for path in paths]
    unread = unread_files(folder, read, KIND)
    return as_task(raw, labels, folder.resolve().name, scaled, settings).replace(notes=(*unread, *(notes if cut else [])))


def _by_name(folder: Path, pattern: str) -> dict[str, list[Path]]:
    """The recordings by class; the class is the first group of the pattern in the file name.

    Raises:
        UserError: E110 if the pattern is not a regular expression with a group, E130 if there are no recordings, E131 if a name
            does not match the pattern, or there is only one class.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        message = f'"{pattern}" is not a regular expression: {error}'
        raise UserError("E110", message, 'for example: pattern = "([^_]+)_"') from error
    if expression.groups < 1:
        raise UserError("E110", f'"{pattern}" has no group for the class', 'for example: pattern = "([^_]+)_"')
    paths = KIND.files(folder) if folder.is_dir() else []
    if not paths:
        raise UserError("E130", f"no recording in {folder}", f"give a folder with {', '.join(SUFFIXES)} files")
    classes: dict[str, list[Path]] = {}
    for path in paths:
        found = expression.match(path.name)
        if found is None or not found[1]:
            raise UserError("E131", f'the name of {path} does not match "{pattern}"', "correct the pattern, or move the file")
        classes.setdefault(found[1], []).append(path)
    if len(classes) < 2:  # noqa: PLR2004 (a classification needs two classes)
        raise UserError("E131", f'all recordings in {folder} have the class "{next(iter(classes))}"', "add other classes")
    return dict(sorted(classes.items()))
