"""Images as data: read a folder with a subfolder of images for each class, or images without labels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError
from mirabelle.sources.datasets.decoded import Manner, Rows, all_rows, sentences
from mirabelle.sources.datasets.folders import Kind, files_by_split, files_without_classes, unread_files
from mirabelle.sources.datasets.places import Place
from mirabelle.sources.datasets.splits import Split, Unread, as_task, completed
from mirabelle.sources.datasets.unreadable import Unreadable
from mirabelle.task.indexed import IN_MEMORY
from mirabelle.task.preprocessing.image import Image, Scaling, mean_and_deviation, mean_and_deviation_of_parts, white_of
from mirabelle.task.preprocessing.pictures import SUFFIXES, Header, Mode, Pixels, header_of, pixels
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.image_settings import EncodedImages, ImageFolder

KIND = Kind("image", "images", SUFFIXES)
_FLOAT_BYTES = 4
_LARGEST, _OTHERWISE = 256, (64, 64)


def task_of(folder: Path, settings: ImageFolder) -> Task:
    """The task of a folder of images; the errors are those of `ImageFolder`."""
    unlabelled = settings.kind == "unlabelled"
    files = files_without_classes(folder, KIND) if unlabelled else files_by_split(folder, KIND, settings.labels)
    labels = () if unlabelled else tuple(files["train"])
    paths = {part: [path for group in classes.values() for path in group] for part, classes in files.items()}
    targets = {part: _targets(classes) for part, classes in files.items()}
    if unlabelled:
        targets = {part: np.zeros((len(group), 0), np.float32) for part, group in paths.items()}
    unread = unread_files(folder, {path for group in paths.values() for path in group}, KIND)
    return divided(opened(paths, settings), targets, labels, settings, groups=labels, name=folder.resolve().name, notes=unread)


@dataclass(frozen=True)
class Opened:
    """The images of the splits, of which only the headers are read.

    Args:
        places: by split.
        headers: of all images that can be read.
        image: how they become inputs; its mean and deviation are not known yet.
        unreadable: the images that cannot be read, as far as they are known.
    """

    places: Mapping[str, Sequence[Place]]
    headers: Mapping[Place, Header]
    image: Image
    unreadable: Unreadable


def opened(
    places: Mapping[str, Sequence[Place]], settings: EncodedImages, known: Mapping[Place, Header] | None = None
) -> Opened:
    """The headers of images, and the size and mode of the inputs.

    Args:
        places: of the images, by split.
        settings: of the data.
        known: headers that need not be read.

    Raises:
        UserError: E131 if a file is no image, E110 for a size out of range.
    """
    unreadable = Unreadable(skip=settings.skip_unreadable, several=KIND.several)
    headers: dict[Place, Header] = dict(known or {})
    for place in (place for group in places.values() for place in group if place not in headers):
        header = unreadable.tried(header_of, place)
        if header is not None:
            headers[place] = header
    if not headers:
        raise UserError("E131", f"no image can be read: {next(iter(unreadable.found.values()))}", "give intact images")
    size, mode = _size_and_mode(list(headers.values()), settings)
    image = Image(size=size, mode=mode, white=settings.white, resize=settings.resize, resample=settings.resample)
    return Opened(places, headers, image, unreadable)


def divided(
    images: Opened,
    targets: Mapping[str, npt.NDArray[Any]],
    labels: tuple[str, ...],
    settings: EncodedImages,
    *,
    name: str,
    groups: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Task:
    """The task of images and targets, with splits that the files lack.

    Args:
        images: by split.
        targets: by split.
        labels: names of the classes.
        settings: of the data.
        name: of the task.
        groups: names of the classes by which the splits are stratified.
        notes: sentences on what was left out before.
    """
    positions: dict[str, Split] = {part: (np.arange(len(group)), targets[part]) for part, group in images.places.items()}
    splits = completed(positions, settings.test_fraction, settings.validation_fraction, settings.seed, groups)
    count = sum(len(group) for group in images.places.values())
    large = _FLOAT_BYTES * count * math.prod(images.image.shape) > IN_MEMORY
    found = (_unread if large else _whole)(images, splits, settings, groups)
    mean, deviation = found.scaling
    image = dataclasses.replace(
        found.image, mean=settings.mean or mean, deviation=settings.deviation or deviation, layout=settings.layout
    )
    told = [*notes, *_notes(list(images.headers.values()), image, settings), *images.unreadable.sentences(images.places)]
    return as_task(found.splits, labels, name, image, settings).replace(notes=(*told, *found.notes))


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


def _whole(images: Opened, splits: Mapping[str, Split], settings: EncodedImages, groups: Sequence[str]) -> _Found:
    """All pixels, in memory."""
    manner, deep = _manner(images), _deep(images)
    raw = {part: all_rows(group, manner, images.unreadable, settings.workers) for part, group in images.places.items()}
    splits = images.unreadable.without(splits, images.places, groups)
    train = splits["train"][0]
    image = _with_white(images.image, [raw["train"][train][deep["train"][train]]])
    for part, values in raw.items():
        _as_bytes(deep[part], image, values, np.arange(len(values)))
    ready = {part: (raw[part if part in raw else "train"][index], own) for part, (index, own) in splits.items()}
    return _Found(ready, image, mean_and_deviation(ready["train"][0]))


def _unread(images: Opened, splits: Mapping[str, Split], settings: EncodedImages, groups: Sequence[str]) -> _Found:
    """Pixels of images that would need much memory: they are decoded once, and read when they are needed."""
    manner, deep = _manner(images), _deep(images)
    found = {part: Rows(group, manner, images.unreadable, settings) for part, group in images.places.items()}
    of = {part: part if part in found else "train" for part in splits}
    train = splits["train"][0]
    own = train[deep["train"][train]]
    image = _with_white(images.image, (rows for _, rows in found["train"].parts(own))) if len(own) else images.image
    scaling: Scaling = (settings.mean, settings.deviation)
    if not all(scaling):
        parts = found["train"].parts(train)
        scaling = mean_and_deviation_of_parts(_as_bytes(deep["train"], image, rows, index) for index, rows in parts)
    if settings.skip_unreadable:
        for part, (index, _) in splits.items():
            found[of[part]].check(index)
    ready = {
        part: found[of[part]].chosen(index, own, partial(_as_bytes, deep[of[part]], image))
        for part, (index, own) in images.unreadable.without(splits, images.places, groups).items()
    }
    return _Found(ready, image, scaling, sentences(found.values()))


def _manner(images: Opened) -> Manner:
    """How the pixels of an image are read; float32 if any image is deep."""
    from PIL import __version__ as version

    image = images.image
    any_deep = any(header.deep for header in images.headers.values())
    return Manner(
        make=partial(pixels, resizing=image.resizing, mode=image.mode),
        shape=(*image.size, image.channels),
        kind=np.float32 if any_deep else np.uint8,
        words=f"{image.resizing} {image.mode}",
        packages=f"Pillow {version}",
        several=KIND.several,
        done="decoded",
    )


def _deep(images: Opened) -> dict[str, npt.NDArray[np.bool_]]:
    """Whether each image has more than 8 bits for each channel, by split."""
    deep = {place for place, header in images.headers.items() if header.deep}
    if not deep:
        return {part: np.zeros(len(group), bool) for part, group in images.places.items()}
    return {part: np.array([place in deep for place in group], bool) for part, group in images.places.items()}


def _with_white(image: Image, parts: Iterable[Pixels]) -> Image:
    """The preprocessing with the value that counts as white, by default learned from the deep training images."""
    if image.white is not None:
        return image
    largest = max((float(part.max()) for part in parts if len(part)), default=None)
    return image if largest is None else dataclasses.replace(image, white=white_of(largest))


def _as_bytes(deep: npt.NDArray[np.bool_], image: Image, values: Pixels, index: npt.NDArray[Any]) -> Pixels:
    """Pixels with 255 as white; those of deep images are changed in place.

    Args:
        deep: whether each image is deep.
        image: has the value of white.
        values: of some images.
        index: their positions.
    """
    if deep[index].any():
        values[deep[index]] = image.as_bytes(values[deep[index]])
    return values


def _size_and_mode(headers: Sequence[Header], settings: EncodedImages) -> tuple[tuple[int, int], Mode]:
    sizes = {header.size for header in headers}
    common = next(iter(sizes))
    size = common if len(sizes) == 1 and max(common) <= _LARGEST else _OTHERWISE
    mode: Mode = "L" if all(header.mode == "L" for header in headers) else "RGB"
    return settings.size or size, settings.mode or mode


def _targets(classes: Mapping[str, Sequence[Path]]) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(len(classes)), [len(paths) for paths in classes.values()])


def _notes(headers: Sequence[Header], image: Image, settings: EncodedImages) -> list[str]:
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
