"""Audio classification: read a folder of recordings, with the class in the name of the subfolder or of the file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError
from mirabelle.sources.datasets.decoded import Manner, Rows, all_rows, sentences
from mirabelle.sources.datasets.folders import Kind, files_by_split, ordered, unread_files
from mirabelle.sources.datasets.splits import Split, Unread, as_task, completed
from mirabelle.sources.datasets.unreadable import SKIP, Unreadable
from mirabelle.task.indexed import IN_MEMORY
from mirabelle.task.preprocessing.kaldi import RATE as KALDI_RATE
from mirabelle.task.preprocessing.kaldi import Kaldi
from mirabelle.task.preprocessing.scaling import mean_and_deviation_of_parts
from mirabelle.task.preprocessing.sound import SUFFIXES, Array, Sound, ends_early, read_wav, wav_length
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
    targets = {
        part: np.repeat(np.arange(len(classes)), [len(group) for group in classes.values()]) for part, classes in files.items()
    }
    found = divided(paths, targets, settings, labels, standardized=True)
    unread = unread_files(folder, [path for group in paths.values() for path in group], KIND)
    notes = (*unread, *found.notes)
    return as_task(found.splits, labels, folder.resolve().name, found.sound, settings).replace(notes=notes)


@dataclass(frozen=True)
class Divided:
    """The features of the splits, or how they are read.

    Args:
        splits: by name.
        sound: how recordings become inputs.
        notes: sentences on what was cut or left out, and on how features are read.
    """

    splits: Mapping[str, Split] | Mapping[str, Unread]
    sound: Sound | Waveform | Kaldi
    notes: Sequence[str]


def divided(
    paths: Mapping[str, Sequence[Path]],
    targets: Mapping[str, npt.NDArray[Any]],
    settings: SoundFolder,
    groups: Sequence[str] = (),
    *,
    standardized: bool = False,
) -> Divided:
    """The features of recordings, with splits that the files lack.

    Args:
        paths: of the recordings, by split.
        targets: by split.
        settings: of the data.
        groups: names of the classes by which the splits are stratified.
        standardized: whether mean and deviation of log-mel features are those of the training data.

    Raises:
        UserError: E131 if a recording cannot be read or has another sampling rate than the first; as `completed`.
    """
    unreadable = Unreadable(skip=settings.skip_unreadable, several=KIND.several)
    lengths, rate, cut_off = _lengths(paths, settings, unreadable)
    longest = max((lengths[path] for path in paths["train"] if path in lengths), default=0) / rate
    sound = _preprocessing(settings, rate, settings.seconds or round(min(longest, _LONGEST), 3))
    positions: dict[str, Split] = {part: (np.arange(len(group)), targets[part]) for part, group in paths.items()}
    splits = completed(positions, settings.test_fraction, settings.validation_fraction, settings.seed, groups)
    manner, learned = _manner(sound), isinstance(sound, Sound) and standardized
    told = _notes(sound, [samples / rate for samples in lengths.values()])
    if cut_off:
        few = f"{len(cut_off):,} of {len(lengths):,} recordings end before the end that their headers tell"
        told.append(f"{few}, the first is {cut_off[0]}; {SKIP} leaves them out.")
    of = {part: part if part in paths else "train" for part in splits}
    ready: Mapping[str, Split] | Mapping[str, Unread]
    if manner.nbytes * sum(len(group) for group in paths.values()) <= IN_MEMORY:
        raw = {part: all_rows(group, manner, unreadable, settings.workers) for part, group in paths.items()}
        left = unreadable.without(splits, paths, groups)
        ready = {part: (raw[of[part]][index], own) for part, (index, own) in left.items()}
        scaling = _scaling(ready["train"][0]) if learned else None
        read: tuple[str, ...] = ()
    else:
        found = {part: Rows(group, manner, unreadable, settings) for part, group in paths.items()}
        scaling = _scaling_of_parts(found["train"], splits["train"][0]) if learned else None
        if settings.skip_unreadable:
            for part, (index, _) in splits.items():
                found[of[part]].check(index)
        left = unreadable.without(splits, paths, groups)
        ready = {part: found[of[part]].chosen(index, own) for part, (index, own) in left.items()}
        read = sentences(found.values())
    if scaling is not None and isinstance(sound, Sound):
        sound = dataclasses.replace(sound, mean=(scaling[0],), deviation=(scaling[1] or 1.0,))
    return Divided(ready, sound, [*told, *unreadable.sentences(paths), *read])


def _lengths(
    paths: Mapping[str, Sequence[Path]], settings: SoundFolder, unreadable: Unreadable
) -> tuple[dict[Path, int], int, list[Path]]:
    """(samples of each recording that can be read, sampling rate of all, those that are cut off and read nevertheless)."""
    rate = settings.rate or (KALDI_RATE if settings.features == "kaldi" else None)
    lengths: dict[Path, int] = {}
    cut_off: list[Path] = []
    for path in (path for group in paths.values() for path in group):
        found = unreadable.tried(wav_length, path)
        if found is None:
            continue
        if ends_early(path):
            if settings.skip_unreadable:
                unreadable.add(path, UserError("E131", f"{path} ends before the end that its header tells", "fetch it again"))
                continue
            cut_off.append(path)
        own, lengths[path] = found
        rate = rate or own
        if own != rate:
            message = f"{path} has a sampling rate of {own} Hz, the other recordings of {rate} Hz"
            if settings.rate or settings.features == "kaldi":
                message = f"{path} has a sampling rate of {own} Hz, not {rate} Hz"
            raise UserError("E131", message, f"resample it to {rate} Hz")
    if rate is None or not lengths:
        raise UserError("E131", f"no recording can be read: {next(iter(unreadable.found.values()))}", "give intact recordings")
    return lengths, rate, cut_off


def _manner(sound: Sound | Waveform | Kaldi) -> Manner:
    """How the features of a recording are read."""
    import scipy

    plain = sound if isinstance(sound, Waveform) else dataclasses.replace(sound, mean=(), deviation=())
    return Manner(
        make=partial(_features, plain),
        shape=sound.shapes[0],
        kind=np.float32,
        words=f"{type(sound).__name__} {plain.to_data()}",
        packages=f"scipy {scipy.__version__} numpy {np.__version__}",
        several="features",
        done="computed",
    )


def _features(sound: Sound | Waveform | Kaldi, path: Path) -> Array:
    return sound.features(read_wav(path)[1])


def _scaling(features: Array) -> tuple[float, float]:
    """Mean and deviation of features in memory."""
    values = features.astype(np.float64)
    return float(values.mean()), float(values.std())


def _scaling_of_parts(rows: Rows, index: npt.NDArray[Any]) -> tuple[float, float]:
    """Mean and deviation of features that are read in parts."""
    means, deviations = mean_and_deviation_of_parts(part.reshape(-1, 1) for _, part in rows.parts(index))
    return sum(means), sum(deviations)  # of one channel, or of none if nothing can be read, which is told later


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
