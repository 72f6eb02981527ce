"""Semantic segmentation: read a folder of images and a folder of masks, in which the value of a pixel is its class."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.sources.datasets.folders import split_folders, unread_files
from mirabelle.sources.datasets.images import KIND, Opened, divided, opened
from mirabelle.task.preprocessing.pictures import header_of, mask_values
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.image_settings import ImageFolder

_IMAGES, _MASKS = "images", "masks"
_METRIC = "mean_iou"
Masks = npt.NDArray[np.int64]


def task_of(folder: Path, settings: ImageFolder) -> Task:
    """The task of a folder of images and masks; the errors are those of `ImageFolder`."""
    pairs = {part: _pairs(place) for part, place in (split_folders(folder) if folder.is_dir() else {"train": folder}).items()}
    images = opened({part: list(own) for part, own in pairs.items()}, settings)
    targets = {part: np.stack([_mask(*pair, images, settings) for pair in own.items()]) for part, own in pairs.items()}
    largest = max(int(masks.max()) for masks in targets.values())
    labels = settings.labels or tuple(map(str, range(largest + 1)))
    if largest >= len(labels):
        message = f"a mask in {folder} has class {largest}, and `labels` has {len(labels)} names"
        raise UserError("E131", message, "name all classes, or say which value has none: ignore = 255")
    unread = unread_files(folder, {path for own in pairs.values() for pair in own.items() for path in pair}, KIND)
    settings = replace(settings, metric=settings.metric or _METRIC)
    return divided(images, targets, labels, settings, name=folder.resolve().name, notes=unread)


def _pairs(place: Path) -> dict[Path, Path]:
    """The mask of each image."""
    if not (place / _IMAGES).is_dir() or not (place / _MASKS).is_dir():
        remedy = f"put images into {place}/{_IMAGES}, and for each a mask of its name into {place}/{_MASKS}, as .png"
        raise UserError("E130", f"{place} does not contain the folders {_IMAGES} and {_MASKS}", remedy)
    images = KIND.files(place / _IMAGES)
    if not images:
        raise UserError("E130", f"no image in {place / _IMAGES}", f"put images there ({', '.join(KIND.suffixes)})")
    found = {image: place / _MASKS / f"{image.stem}.png" for image in images}
    absent = [mask for mask in found.values() if not mask.is_file()]
    if absent:
        message = f"{len(absent):,} of {len(found):,} images have no mask, the first is {absent[0]}"
        raise UserError("E131", message, "a mask has the name of its image, and the suffix .png")
    return found


def _mask(path: Path, mask: Path, images: Opened, settings: ImageFolder) -> Masks:
    """The class of each pixel of a model input, (height, width); −100 for none, and for a mask or image that cannot be read."""
    header = images.unreadable.tried(header_of, mask)
    if path not in images.headers or header is None:
        return _lost(path, mask, images)
    own, due = header.size, images.headers[path].size
    if own != due:
        raise UserError("E131", f"{mask} has {own[0]}×{own[1]} pixels, its image {due[0]}×{due[1]}", "make them of one size")
    values = images.unreadable.tried(partial(mask_values, resizing=images.image.resizing), mask)
    if values is None:
        return _lost(path, mask, images)
    none = values == settings.ignore
    if settings.reduce_labels:
        none, values = none | (values == 0), values - 1
    return np.where(none, UNLABELLED, values)


def _lost(path: Path, mask: Path, images: Opened) -> Masks:
    """A mask without classes, for an image that is left out because it or its mask cannot be read."""
    found = images.unreadable.found
    found[path] = found[path] if path in found else found[mask]
    return np.full(images.image.size, UNLABELLED, np.int64)
