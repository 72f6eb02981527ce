"""A folder of class folders of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from mirabelle.errors import UserError
from mirabelle.preprocessing.image import SUFFIXES, Image, mean_and_deviation, pixels, upright_size
from mirabelle.sources.splits import Split, as_task, completed
from mirabelle.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.settings import ImageFolder

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
_LARGEST, _OTHERWISE = 256, (64, 64)


def task_of(folder: Path, settings: ImageFolder) -> Task:
    """The task that a folder gives; errors as `ImageFolder` tells them."""
    files = _files_by_split(folder)
    labels = tuple(files["train"])
    size, mode = _size_and_mode(files, settings)
    plain = Image(size=size, mode=mode)  # refuses a size that is out of range before anything is read
    raw = {name: _read(classes, plain) for name, classes in files.items()}
    raw = completed(raw, settings.test_fraction, settings.validation_fraction, settings.seed, labels)
    mean, deviation = mean_and_deviation(raw["train"][0])
    image = Image(size=size, mode=mode, mean=settings.mean or mean, deviation=settings.deviation or deviation)
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


def _files_by_split(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Image files by split and class; "train" alone where the folder holds classes."""
    if not folder.is_dir():
        raise UserError("E130", f"no folder of images at {folder}", 'paths are relative to the recipe; "~" is not expanded')
    inside = _folders(folder)
    if not inside:
        remedy = f"put images ({', '.join(SUFFIXES)}) into one folder for each class: {folder}/<class>/"
        raise UserError("E130", f"{folder} holds no class folders", remedy)
    if not any(place.name == "train" and _folders(place) for place in inside):
        return {"train": _classes(folder)}
    other = [place.name for place in inside if place.name not in _SPLITS]
    if other:
        raise UserError("E131", f'{folder} has a folder "{other[0]}" beside "train"', f"known here: {', '.join(_SPLITS)}")
    named = [_SPLITS[place.name] for place in inside]
    if len(set(named)) < len(named):
        raise UserError("E131", f"{folder} has validation images under two names", 'keep one folder, "validation"')
    splits = {_SPLITS[place.name]: _classes(place) for place in inside}
    for name, classes in splits.items():
        different = sorted(set(classes) ^ set(splits["train"]))
        if different:
            message = f'{folder}: class "{different[0]}" is in one of "train" and "{name}" only'
            raise UserError("E131", message, "give every split the same class folders")
    return splits


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Image files by class, both sorted."""
    classes = {place.name: _images(place) for place in _folders(folder)}
    if len(classes) < 2:  # noqa: PLR2004 (something to choose between)
        found = f'one, "{next(iter(classes))}"' if classes else "none"
        raise UserError("E131", f"{folder} must hold at least two class folders; it holds {found}", "add the other classes")
    for name, paths in classes.items():
        if not paths:
            raise UserError("E131", f'class "{name}" in {folder} has no image', f"add some ({', '.join(SUFFIXES)})")
    return classes


def _folders(folder: Path) -> list[Path]:
    return sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
