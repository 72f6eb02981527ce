"""A folder of class folders of recordings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mirabelle.errors import UserError
from mirabelle.preprocessing.sound import SUFFIXES, Array, Sound, read_wav
from mirabelle.sources.folders import Kind, files_by_split
from mirabelle.sources.splits import Split, as_task, completed
from mirabelle.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.settings import SoundFolder

KIND = Kind("recording", "recordings", SUFFIXES)
_LONGEST = 10.0  # seconds, where nothing is said


def task_of(folder: Path, settings: SoundFolder) -> Task:
    """The task that a folder gives; errors as `SoundFolder` tells them."""
    files = files_by_split(folder, KIND)
    labels = tuple(files["train"])
    rate = settings.rate
    recordings: dict[str, list[Array]] = {}
    for part, classes in files.items():
        recordings[part] = []
        for path in (path for paths in classes.values() for path in paths):
            own, samples = read_wav(path)
            rate = rate or own
            if own != rate:
                raise UserError("E131", f"{path} has {own} samples a second, the others {rate}", f"resample it to {rate}")
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
    return as_task(raw, labels, folder.resolve().name, scaled, settings)
