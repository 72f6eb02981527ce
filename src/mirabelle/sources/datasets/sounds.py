"""Audio classification: read a folder of recordings, with the class in the name of the subfolder or of the file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mirabelle.errors import UserError
from mirabelle.sources.datasets.folders import Kind, files_by_split, ordered, unread_files
from mirabelle.sources.datasets.splits import Split, as_task, completed
from mirabelle.task.preprocessing.kaldi import RATE as KALDI_RATE
from mirabelle.task.preprocessing.kaldi import Kaldi
from mirabelle.task.preprocessing.sound import SUFFIXES, Array, Sound, read_wav
from mirabelle.task.preprocessing.waveform import Waveform
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.settings import SoundFolder

KIND = Kind("recording", "recordings", SUFFIXES)
_LONGEST = 10.0  # most seconds of a recording by default
_ROUNDING = 1e-3  # seconds, to which the length of the longest recording is rounded


def task_of(folder: Path, settings: SoundFolder) -> Task:
    """The task of a folder of recordings; the errors are those of `SoundFolder`."""
    if settings.pattern is None:
        files = files_by_split(folder, KIND, settings.labels)
    else:
        files = {"train": ordered(_by_name(folder, settings.pattern), settings.labels, folder)}
    labels = tuple(files["train"])
    paths = {part: [path for group in classes.values() for path in group] for part, classes in files.items()}
    sound, inputs, notes = inputs_of(paths, settings)
    raw: dict[str, Split] = {
        part: (inputs[part], np.repeat(np.arange(len(classes)), [len(group) for group in classes.values()]))
        for part, classes in files.items()
    }
    raw = completed(raw, settings.test_fraction, settings.validation_fraction, settings.seed, labels)
    if isinstance(sound, Sound):
        train = raw["train"][0].astype(np.float64)
        sound = dataclasses.replace(sound, mean=(float(train.mean()),), deviation=(float(train.std()) or 1.0,))
    unread = unread_files(folder, [path for group in paths.values() for path in group], KIND)
    return as_task(raw, labels, folder.resolve().name, sound, settings).replace(notes=(*unread, *notes))


def inputs_of(
    paths: Mapping[str, Sequence[Path]], settings: SoundFolder
) -> tuple[Sound | Waveform | Kaldi, dict[str, Array], list[str]]:
    """(the preprocessing, features of all recordings by split, notes on what was cut).

    Raises:
        UserError: E131 if a recording cannot be read or has another sampling rate than the first.
    """
    rate = settings.rate or (KALDI_RATE if settings.features == "kaldi" else None)
    recordings: dict[str, list[Array]] = {}
    for part, group in paths.items():
        recordings[part] = []
        for path in group:
            own, samples = read_wav(path)
            rate = rate or own
            if own != rate:
                message = f"{path} has a sampling rate of {own} Hz, the other recordings of {rate} Hz"
                if settings.rate or settings.features == "kaldi":
                    message = f"{path} has a sampling rate of {own} Hz, not {rate} Hz"
                raise UserError("E131", message, f"resample it to {rate} Hz")
            recordings[part].append(samples)
    assert rate is not None, "every split has a recording"
    longest = max(len(samples) for samples in recordings["train"]) / rate
    sound = _preprocessing(settings, rate, settings.seconds or round(min(longest, _LONGEST), 3))
    features = {part: np.stack([sound.features(samples) for samples in own]) for part, own in recordings.items()}
    return sound, features, _notes(sound, [len(one) / rate for own in recordings.values() for one in own])


def _preprocessing(settings: SoundFolder, rate: int, seconds: float) -> Sound | Waveform | Kaldi:
    if settings.features == "waveform":
        return Waveform(sampling_rate=rate, seconds=seconds, normalize=settings.normalize)
    if settings.features == "kaldi":
        mean, deviation = (() if value is None else (value,) for value in (settings.mean, settings.deviation))
        return Kaldi(frames=settings.frames, mels=settings.mels, mean=mean, deviation=deviation)
    return Sound(rate=rate, seconds=seconds, mels=settings.mels, window=settings.window, hop=settings.hop)


def _notes(sound: Sound | Waveform | Kaldi, seconds: Sequence[float]) -> list[str]:
    """What is left out of recordings of these lengths, and what is padded with zeros."""
    cut, short = (sum(which(one - sound.seconds) for one in seconds) for which in (_is_longer, lambda gap: _is_longer(-gap)))
    told, count = [], len(seconds)
    if cut:
        rest = "of which the rest is left out" + ("" if isinstance(sound, Kaldi) else " (`seconds`)")
        told.append(f"{cut:,} of {count:,} recordings are longer than {sound.seconds:g} s, {rest}.")
    if short and isinstance(sound, Waveform) and sound.normalize == "recording":
        told.append(
            f"{short:,} of {count:,} recordings are shorter than {sound.seconds:g} s; the model sees the zeros behind them."
        )
    return told


def _is_longer(gap: float) -> bool:
    """Whether a difference of seconds is more than a rounding."""
    return gap > _ROUNDING


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
