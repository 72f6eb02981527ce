"""Image classification: read a folder with a subfolder of images for each class; or images without labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mirabelle.sources.datasets.folders import Kind, files_by_split, files_without_classes, unread_files
from mirabelle.sources.datasets.splits import Split, as_task, completed
from mirabelle.task.preprocessing.image import Image, mean_and_deviation, white_of
from mirabelle.task.preprocessing.pictures import SUFFIXES, Header, Mode, header_of, pixels
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.settings import ImageFolder

KIND = Kind("image", "images", SUFFIXES)
_LARGEST, _OTHERWISE = 256, (64, 64)
Files = Mapping[str, Mapping[str, Sequence[Path]]]  # by split and class


def task_of(folder: Path, settings: ImageFolder) -> Task:
    """The task of a folder of images; the errors are those of `ImageFolder`."""
    unlabelled = settings.kind == "unlabelled"
    files: Files = files_without_classes(folder, KIND) if unlabelled else files_by_split(folder, KIND)
    labels = () if unlabelled else tuple(files["train"])
    headers = {path: header_of(path) for classes in files.values() for paths in classes.values() for path in paths}
    size, mode = _size_and_mode(list(headers.values()), settings)
    image = Image(size=size, mode=mode, white=settings.white)  # raises an error for a size out of range before pixels are read
    raw = {name: _read(classes, headers, image) for name, classes in files.items()}
    deep = {name: _per_image(classes, headers) for name, classes in files.items()}
    if unlabelled:
        raw = {name: (values, np.zeros((len(values), 0), np.float32)) for name, (values, _) in raw.items()}
    positions: dict[str, Split] = {name: (np.arange(len(values)), targets) for name, (values, targets) in raw.items()}
    splits = completed(positions, settings.test_fraction, settings.validation_fraction, settings.seed, labels)
    if any(header.deep for header in headers.values()):
        learned = raw["train"][0][splits["train"][0]][deep["train"][splits["train"][0]]]
        largest = float(learned.max()) if len(learned) else None
        if image.white is None and largest is not None:
            image = dataclasses.replace(image, white=white_of(largest))
        for name, (values, _) in raw.items():
            values[deep[name]] = image.as_bytes(values[deep[name]])
    ready = {name: (raw[name if name in raw else "train"][0][index], targets) for name, (index, targets) in splits.items()}
    mean, deviation = mean_and_deviation(ready["train"][0])
    image = dataclasses.replace(
        image, mean=settings.mean or mean, deviation=settings.deviation or deviation, layout=settings.layout
    )
    notes = [*unread_files(folder, headers, KIND), *_notes(list(headers.values()), image, settings)]
    return as_task(ready, labels, folder.resolve().name, image, settings).replace(notes=tuple(notes))


def _size_and_mode(headers: Sequence[Header], settings: ImageFolder) -> tuple[tuple[int, int], Mode]:
    sizes = {header.size for header in headers}
    common = next(iter(sizes))
    size = common if len(sizes) == 1 and max(common) <= _LARGEST else _OTHERWISE
    mode: Mode = "L" if all(header.mode == "L" for header in headers) else "RGB"
    return settings.size or size, settings.mode or mode


def _per_image(
    classes: Mapping[str, Sequence[Path]], headers: Mapping[Path, Header]
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each image of a split has more than 8 bits for each channel, (images,)."""
    return np.array([headers[path].deep for paths in classes.values() for path in paths], bool)


def _read(classes: Mapping[str, Sequence[Path]], headers: Mapping[Path, Header], image: Image) -> Split:
    """(pixels (images, height, width, channels), targets) of one split; float32 if any image of the folder is deep."""
    paths = [path for paths in classes.values() for path in paths]
    kind = np.float32 if any(header.deep for header in headers.values()) else np.uint8
    values = np.empty((len(paths), *image.size, image.channels), kind)
    for k, path in enumerate(paths):
        values[k] = pixels(path, image.size, image.mode)
    return values, np.repeat(np.arange(len(classes)), [len(paths) for paths in classes.values()])


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
