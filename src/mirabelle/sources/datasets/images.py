"""Image classification: read a folder with a subfolder of images for each class; or images without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from mirabelle.sources.datasets.folders import Kind, files_by_split, files_without_classes
from mirabelle.sources.datasets.splits import Split, as_task, completed
from mirabelle.task.preprocessing.image import SUFFIXES, Image, mean_and_deviation, pixels, upright_size
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.settings import ImageFolder

KIND = Kind("image", "images", SUFFIXES)
_LARGEST, _OTHERWISE = 256, (64, 64)


def task_of(folder: Path, settings: ImageFolder) -> Task:
    """The task of a folder of images; the errors are those of `ImageFolder`."""
    unlabelled = settings.kind == "unlabelled"
    files = files_without_classes(folder, KIND) if unlabelled else files_by_split(folder, KIND)
    labels = () if unlabelled else tuple(files["train"])
    size, mode = _size_and_mode(files, settings)
    plain = Image(size=size, mode=mode)  # raises an error for a size out of range before anything is read
    raw = {name: _read(classes, plain) for name, classes in files.items()}
    if unlabelled:
        raw = {name: (values, np.zeros((len(values), 0), np.float32)) for name, (values, _) in raw.items()}
    raw = completed(raw, settings.test_fraction, settings.validation_fraction, settings.seed, labels)
    mean, deviation = mean_and_deviation(raw["train"][0])
    deviation = settings.deviation or deviation
    image = Image(size=size, mode=mode, mean=settings.mean or mean, deviation=deviation, layout=settings.layout)
    return as_task(raw, labels, folder.resolve().name, image, settings)


def _size_and_mode(
    files: Mapping[str, Mapping[str, Sequence[Path]]], settings: ImageFolder
) -> tuple[tuple[int, int], Literal["L", "RGB"]]:
    if settings.size is not None and settings.mode is not None:
        return settings.size, settings.mode
    seen = {upright_size(path) for classes in files.values() for paths in classes.values() for path in paths}
    sizes = {size for size, _ in seen}
    common = next(iter(sizes))
    size = common if len(sizes) == 1 and max(common) <= _LARGEST else _OTHERWISE
    return settings.size or size, settings.mode or ("L" if all(mode == "L" for _, mode in seen) else "RGB")


def _read(classes: Mapping[str, Sequence[Path]], image: Image) -> Split:
    """(pixels (images, height, width, channels), targets) of one split."""
    paths = [path for paths in classes.values() for path in paths]
    values = np.empty((len(paths), *image.size, image.channels), np.uint8)
    for k, path in enumerate(paths):
        values[k] = pixels(path, image.size, image.mode)
    return values, np.repeat(np.arange(len(classes)), [len(paths) for paths in classes.values()])
