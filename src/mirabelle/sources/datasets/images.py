"""Images as data: read a folder with a subfolder of images for each class, or images without labels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mirabelle.run.files import digest
from mirabelle.sources.datasets.decoded import Decoded, decoded
from mirabelle.sources.datasets.folders import Kind, files_by_split, files_without_classes, unread_files
from mirabelle.sources.datasets.splits import Split, Unread, as_task, completed
from mirabelle.task.indexed import IN_MEMORY
from mirabelle.task.preprocessing.image import Image, Scaling, mean_and_deviation, mean_and_deviation_of_bytes, white_of
from mirabelle.task.preprocessing.pictures import SUFFIXES, Header, Mode, Pixels, header_of, pixels
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.image_settings import ImageFolder

KIND = Kind("image", "images", SUFFIXES)
_FLOAT_BYTES = 4
_LARGEST, _OTHERWISE = 256, (64, 64)


def task_of(folder: Path, settings: ImageFolder) -> Task:
    """The task of a folder of images; the errors are those of `ImageFolder`."""
    unlabelled = settings.kind == "unlabelled"
    files = files_without_classes(folder, KIND) if unlabelled else files_by_split(folder, KIND, settings.labels)
    labels = () if unlabelled else tuple(files["train"])
    paths = {part: [path for group in classes.values() for path in group] for part, classes in files.items()}
    images = opened(paths, settings)
    targets = {part: _targets(classes) for part, classes in files.items()}
    if unlabelled:
        targets = {part: np.zeros((len(group), 0), np.float32) for part, group in paths.items()}
    return divided(folder, images, targets, labels, settings, groups=labels)


@dataclass(frozen=True)
class Opened:
    """The image files of the splits, of which only the headers are read.

    Args:
        paths: by split.
        headers: of all files.
        image: how they become inputs; its mean and deviation are not known yet.
    """

    paths: Mapping[str, Sequence[Path]]
    headers: Mapping[Path, Header]
    image: Image


def opened(paths: Mapping[str, Sequence[Path]], settings: ImageFolder) -> Opened:
    """The headers of image files, and the size and mode of the inputs.

    Raises:
        UserError: E131 if a file is no image, E110 for a size out of range.
    """
    headers = {path: header_of(path) for group in paths.values() for path in group}
    size, mode = _size_and_mode(list(headers.values()), settings)
    return Opened(
        paths, headers, Image(size=size, mode=mode, white=settings.white, resize=settings.resize, resample=settings.resample)
    )


def divided(
    folder: Path,
    images: Opened,
    targets: Mapping[str, npt.NDArray[Any]],
    labels: tuple[str, ...],
    settings: ImageFolder,
    *,
    groups: Sequence[str] = (),
    also_read: Sequence[Path] = (),
) -> Task:
    """The task of images and targets, with splits that the files lack.

    Args:
        folder: of the data.
        images: by split.
        targets: by split.
        labels: names of the classes.
        settings: of the data.
        groups: names of the classes by which the splits are stratified.
        also_read: files of the folder that are read besides the images.
    """
    positions: dict[str, Split] = {part: (np.arange(len(group)), targets[part]) for part, group in images.paths.items()}
    splits = completed(positions, settings.test_fraction, settings.validation_fraction, settings.seed, groups)
    size = _FLOAT_BYTES * len(images.headers) * math.prod(images.image.shape)
    large = size > IN_MEMORY and not any(header.deep for header in images.headers.values())
    found = _unread(images, splits) if large else _whole(images, splits)
    mean, deviation = found.scaling
    image = dataclasses.replace(
        found.image, mean=settings.mean or mean, deviation=settings.deviation or deviation, layout=settings.layout
    )
    notes = [*_notes(list(images.headers.values()), image, settings), *found.notes]
    return as_task(found.splits, labels, folder.resolve().name, image, settings).replace(
        notes=(*unread_files(folder, {*images.headers, *also_read}, KIND), *notes)
    )


@dataclass(frozen=True)
class _Found:
    """The pixels of the splits, or how they are read.

    Args:
        splits: by name.
        image: how they become inputs, with the value of white.
        scaling: mean and deviation of the training images.
        notes: sentences on how they are read.
    """

    splits: Mapping[str, Split] | Mapping[str, Unread]
    image: Image
    scaling: Scaling
    notes: tuple[str, ...] = ()


def _whole(images: Opened, splits: Mapping[str, Split]) -> _Found:
    """All pixels, in memory."""
    image, headers = images.image, images.headers
    raw = {part: _read(group, headers, image) for part, group in images.paths.items()}
    deep = {part: np.array([headers[path].deep for path in group], bool) for part, group in images.paths.items()}
    if any(header.deep for header in headers.values()):
        learned = raw["train"][splits["train"][0]][deep["train"][splits["train"][0]]]
        largest = float(learned.max()) if len(learned) else None
        if image.white is None and largest is not None:
            image = dataclasses.replace(image, white=white_of(largest))
        for part, values in raw.items():
            values[deep[part]] = image.as_bytes(values[deep[part]])
    ready = {part: (raw[part if part in raw else "train"][index], own) for part, (index, own) in splits.items()}
    return _Found(ready, image, mean_and_deviation(ready["train"][0]))


def _unread(images: Opened, splits: Mapping[str, Split]) -> _Found:
    """Pixels of images that would need much memory: they are decoded once, and read when they are needed."""
    found = {part: decoded(group, images.image) for part, group in images.paths.items()}
    ready: dict[str, Unread] = {}
    for part, (index, own) in splits.items():
        source = found[part if part in found else "train"]
        ready[part] = Unread(partial(_chosen, source, index), own, f"{source.identity} {digest(index.tobytes())}")
    scaling = mean_and_deviation_of_bytes(found["train"].parts(splits["train"][0]))
    return _Found(ready, images.image, scaling, tuple({one.note for one in found.values() if one.note}))


def _chosen(source: Decoded, index: npt.NDArray[Any], own: npt.NDArray[Any]) -> Pixels:
    return source.read(index[own])


def _size_and_mode(headers: Sequence[Header], settings: ImageFolder) -> tuple[tuple[int, int], Mode]:
    sizes = {header.size for header in headers}
    common = next(iter(sizes))
    size = common if len(sizes) == 1 and max(common) <= _LARGEST else _OTHERWISE
    mode: Mode = "L" if all(header.mode == "L" for header in headers) else "RGB"
    return settings.size or size, settings.mode or mode


def _targets(classes: Mapping[str, Sequence[Path]]) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(len(classes)), [len(paths) for paths in classes.values()])


def _read(paths: Sequence[Path], headers: Mapping[Path, Header], image: Image) -> Pixels:
    """Pixels (images, height, width, channels) of one split; float32 if any image of the folder is deep."""
    kind = np.float32 if any(header.deep for header in headers.values()) else np.uint8
    values = np.empty((len(paths), *image.size, image.channels), kind)
    for k, path in enumerate(paths):
        values[k] = pixels(path, image.resizing, image.mode)
    return values


def _notes(headers: Sequence[Header], image: Image, settings: ImageFolder) -> list[str]:
    """Sentences on how the files were changed to become inputs."""
    count, notes = f"of {len(headers):,} images", []
    deep, transparent, several = (
        sum(getattr(header, name) for header in headers) for name in ("deep", "transparent", "several")
    )
    if deep:
        white = f"{image.white:,g}" if image.white is not None else "65,535"
        source = "as `white` says" if settings.white else "from the largest value of the training images"
        notes.append(f"{deep:,} {count} have more than 8 bits for each channel; {white} counts as white, {source}.")
    if transparent:
        notes.append(f"{transparent:,} {count} have transparency, which is left out.")
    if several:
        notes.append(f"{several:,} {count} contain several frames or pages, of which only the first is read.")
    sizes = sorted({header.size for header in headers}, key=lambda size: size[0] * size[1])
    resized = sum(header.size != image.size for header in headers)
    if resized:
        span = _by(sizes[0]) if len(sizes) == 1 else f"{_by(sizes[0])} to {_by(sizes[-1])}"
        chosen = "" if settings.size else "; `size` in [task.arguments] sets another size"
        notes.append(f"{resized:,} {count} ({span} pixels) are resized to {_by(image.size)}{chosen}.")
    return notes


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
