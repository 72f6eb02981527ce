"""Read a task from arrays in an .npz file or in .npy files, named as in MedMNIST or by common habits, or in IDX files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError
from mirabelle.run.files import digest
from mirabelle.sources.datasets.array_rows import ArrayRows, changed, checked_rows, parts_of
from mirabelle.sources.datasets.cache import remembered
from mirabelle.sources.datasets.idx import idx_files, idx_splits
from mirabelle.sources.datasets.splits import Split, Unread, as_task, completed
from mirabelle.sources.datasets.stored_arrays import stored_arrays
from mirabelle.task.indexed import IN_MEMORY
from mirabelle.task.preprocessing.image import (
    Image,
    Scaling,
    mean_and_deviation,
    mean_and_deviation_of_bytes,
    mean_and_deviation_of_parts,
    white_of,
)
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.settings import Arrays

Array = npt.NDArray[Any]
Given: TypeAlias = tuple[Array | ArrayRows, Array]  # inputs, targets
_FLOAT_BYTES = 4
_LAYOUTS: tuple[dict[str, tuple[str, str]], ...] = (
    {
        "train": ("train_images", "train_labels"),
        "validation": ("val_images", "val_labels"),
        "test": ("test_images", "test_labels"),
    },
    {"train": ("x_train", "y_train"), "validation": ("x_val", "y_val"), "test": ("x_test", "y_test")},
    {"train": ("inputs", "targets")},
)
_IMAGE_AXES, _CHANNELS = 4, (1, 3)
_PIXELS = (np.uint8, np.uint16)  # types of images


def task_of(path: Path, settings: Arrays) -> Task:
    """The task of an .npz file, or of a folder of IDX files; the errors are those of `Arrays`."""
    try:
        given: Mapping[str, Given]
        if path.is_dir() and idx_files(path):
            given = idx_splits(path)
        else:
            given = _splits(path, _arrays(path), labelled=settings.kind != "unlabelled")
        return _task(given, path.stem or path.resolve().name, settings)
    except UserError as error:
        raise error if str(path) in error.message else error.at(str(path)) from None


def _task(given: Mapping[str, Given], name: str, settings: Arrays) -> Task:
    kind = settings.kind or _kind(given)
    labels: tuple[str, ...] = ()
    if kind == "unlabelled":
        given = {part: (x, _no_targets(x)) for part, (x, _) in given.items()}
    elif kind == "classification":
        given, labels = _classes(given, settings.labels)
    elif kind == "multi-label":
        given, labels = _multi_label(given, settings.labels)
    else:
        given = {part: (x, _quantities(y)) for part, (x, y) in given.items()}
    train = given["train"][0]
    is_pixels = train.dtype in _PIXELS and train.ndim >= _IMAGE_AXES - 1
    splits = {part: (changed(x, _pixels if is_pixels else _numbers), y) for part, (x, y) in given.items()}
    if len({(x.shape[1:], x.dtype) for x, _ in splits.values()}) > 1:
        shapes = ", ".join(f"{part} {x.dtype} {x.shape[1:]}" for part, (x, _) in splits.items())
        raise UserError("E131", f"the splits differ in shape or type: {shapes}", "give samples of the same shape and type")
    groups = labels if kind == "classification" else ()
    splits = completed(splits, settings.test_fraction, settings.validation_fraction, settings.seed, groups)
    if is_pixels:
        return _of_pixels(splits, labels, name, settings)
    return as_task(_ready(splits), labels, name, None, settings)


def _ready(splits: Mapping[str, Given]) -> dict[str, Split] | dict[str, Unread]:
    """The splits for a task. All inputs are in memory, or none are."""
    whole: dict[str, Split] = {part: (x, y) for part, (x, y) in splits.items() if not isinstance(x, ArrayRows)}
    unread = {part: Unread(x.read, y, x.state) for part, (x, y) in splits.items() if isinstance(x, ArrayRows)}
    return unread or whole


def _of_pixels(splits: Mapping[str, Given], labels: tuple[str, ...], name: str, settings: Arrays) -> Task:
    """The task of images as arrays (N, height, width, channels) of uint8 or uint16."""
    train = splits["train"][0]
    _, height, width, channels = train.shape
    learn = partial(_learned, train)
    white, (mean, deviation) = (
        remembered(digest(b"pixels", train.state.encode()), learn) if isinstance(train, ArrayRows) else learn()
    )
    deep = white is not None
    image = Image(
        size=(height, width),
        mode="L" if channels == 1 else "RGB",
        white=white,
        mean=settings.mean or tuple(mean),
        deviation=settings.deviation or tuple(deviation),
        layout=settings.layout,
    )
    bright = {part: (changed(x, partial(_as_bytes, image)) if deep else x, y) for part, (x, y) in splits.items()}
    notes = [f"The images have 16 bits; {image.white:,g} counts as white, from the largest training value."] if deep else []
    return as_task(_ready(bright), labels, name, image, settings).replace(notes=tuple(notes))


def _learned(images: Array | ArrayRows) -> tuple[float | None, Scaling]:
    """(the value of white of images of 16 bits, None for those of 8, mean and deviation of each channel)."""
    if images.dtype == np.uint8:
        return None, mean_and_deviation_of_bytes(parts_of(images))
    white = white_of(float(max(int(part.max()) for part in parts_of(images))))
    bright = changed(images, partial(_as_bytes, Image(size=(1, 1), white=white)))
    return white, mean_and_deviation_of_parts(bright.blocks()) if isinstance(bright, ArrayRows) else mean_and_deviation(bright)


def _as_bytes(image: Image, values: Array) -> Array:
    return image.as_bytes(values.astype(np.float32))


def _arrays(path: Path) -> dict[str, Array | ArrayRows]:
    """All arrays of a file or folder by name; inputs that would need much memory as rows that are read when they are needed."""
    if not path.exists():
        raise UserError("E130", f"no arrays at {path}", 'paths are relative to the recipe; "~" is not expanded')
    stored = stored_arrays(path) if path.is_dir() or zipfile.is_zipfile(path) else {}
    inputs = [name for layout in _LAYOUTS for name, _ in layout.values() if name in stored]
    large = _FLOAT_BYTES * sum(stored[name].values for name in inputs) > IN_MEMORY
    if not large:
        return {name: array.whole() for name, array in stored.items()} if path.is_dir() else dict(read_arrays(path))
    targets = {other for layout in _LAYOUTS for _, other in layout.values()}
    return {
        name: checked_rows(array) if name in inputs and array.shape else array.whole()
        for name, array in stored.items()
        if name in inputs or name in targets
    }


def _splits(path: Path, arrays: dict[str, Array | ArrayRows], *, labelled: bool) -> dict[str, Given]:
    """(inputs, targets) by split, of equal lengths; if `labelled` is false, targets have shape (samples, 0)."""
    if not labelled:
        pairs = [pair for layout in _LAYOUTS for pair in layout.values()]
        arrays |= {other: _no_targets(arrays[own]) for own, other in pairs if own in arrays}
    layout = next((layout for layout in _LAYOUTS if set(layout["train"]) & set(arrays)), None)
    if layout is None:
        known = "; ".join(" and ".join(layout["train"]) for layout in _LAYOUTS)
        message = f"{path} contains {', '.join(arrays) or 'no array'}, and no training data under a known name"
        raise UserError("E131", message, f"name the training data {known}")
    splits: dict[str, Given] = {}
    for name, pair in layout.items():
        present = [key for key in pair if key in arrays]
        if len(present) == 1:
            remedy = f'give both {" and ".join(pair)}, or write kind = "unlabelled" for inputs without targets'
            raise UserError("E131", f"{path} has {present[0]}, but not its counterpart", remedy)
        if present:
            given, targets = (arrays[key] for key in pair)
            assert not isinstance(targets, ArrayRows), "only inputs are read when they are needed"
            inputs, targets = (
                given if isinstance(given, ArrayRows) else np.ascontiguousarray(given),
                np.ascontiguousarray(targets),
            )
            lengths = [array.shape[0] if array.ndim else 0 for array in (inputs, targets)]
            if lengths[0] != lengths[1] or not lengths[0]:
                message = (
                    f"{path}: {pair[0]} and {pair[1]} must have the same length, above 0; got {lengths[0]} and {lengths[1]}"
                )
                raise UserError("E131", message, "give one target for each input")
            splits[name] = (inputs, targets)
    return splits


def _no_targets(inputs: Array | ArrayRows) -> Array:
    """Empty targets for unlabelled data, (N, 0)."""
    return np.zeros((inputs.shape[0] if inputs.ndim else 0, 0), np.float32)


def read_arrays(path: Path) -> dict[str, Array]:
    """All arrays of an .npz file by name; pickled objects are refused.

    Raises:
        UserError: E130 if the file is missing, E131 if it is damaged, E143 if it contains pickled objects.
    """
    if not path.is_file():
        raise UserError("E130", f"no arrays at {path}", 'paths are relative to the recipe; "~" is not expanded')
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            arrays = {"": found} if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except (ValueError, OSError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            message = f"{path} contains Python objects (a pickle), which may run code, so it is not read"
            raise UserError("E143", message, "save arrays of numbers") from error
        raise UserError("E131", f"{path} is damaged: {error}", "save it again with numpy.savez") from error
    if "" in arrays:
        raise UserError("E131", f"{path} contains one array without a name", "save inputs and targets with numpy.savez")
    return arrays


def _kind(splits: Mapping[str, Given]) -> Literal["classification", "regression"]:
    whole = all(np.issubdtype(targets.dtype, np.integer) or targets.dtype == bool for _, targets in splits.values())
    return "classification" if whole else "regression"


def _quantities(targets: Array) -> Array:
    """Targets as float32, (N, ...), at least (N, 1)."""
    numbers: Array = _numbers(targets).astype(np.float32)
    return numbers[:, np.newaxis] if numbers.ndim == 1 else numbers


def _classes(splits: Mapping[str, Given], names: tuple[str, ...]) -> tuple[dict[str, Given], tuple[str, ...]]:
    """The splits with targets as int64 (N,), and the names of the classes; by default numbers, as the training data need."""
    found: dict[str, Given] = {}
    for part, (inputs, targets) in splits.items():
        if targets.shape[1:] not in ((), (1,)):
            message = f"{part} targets must be one class for each sample, (N,) or (N, 1); got shape {targets.shape}"
            raise UserError("E131", message, 'for several labels of 0 or 1 for each sample, write kind = "multi-label"')
        classes = targets.reshape(-1).astype(np.int64)
        if (classes != targets.reshape(-1)).any():
            raise UserError("E131", f"{part} targets must be whole numbers", 'give classes, or write kind = "regression"')
        found[part] = (inputs, classes)
    count = len(names) or int(found["train"][1].max()) + 1
    for part, (_, classes) in found.items():
        wrong = classes[(classes < 0) | (classes >= count)]
        if len(wrong):
            source = "labels" if names else "the training data"
            message = f"{part} targets must be from 0 to {count - 1}, according to {source}; got {wrong[0]}"
            raise UserError("E131", message, "correct the targets or the labels")
    if count < 2:  # noqa: PLR2004 (a classification needs two classes)
        message = "a classification needs at least two classes; all targets are 0"
        raise UserError("E131", message, "give targets of at least two classes")
    if count > len(found["train"][1]):
        message = f"there are only {len(found['train'][1])} training samples for {count} classes"
        raise UserError("E131", message, 'number the classes from 0, or write kind = "regression"')
    return found, names or tuple(str(k) for k in range(count))


def _multi_label(splits: Mapping[str, Given], names: tuple[str, ...]) -> tuple[dict[str, Given], tuple[str, ...]]:
    """The splits with targets as float32 (N, labels) of 0 and 1, and the names of the labels."""
    count = splits["train"][1].shape[1] if splits["train"][1].ndim == 2 else 0  # noqa: PLR2004 (samples, labels)
    for part, (_, targets) in splits.items():
        if not count or targets.shape[1:] != (count,) or not np.isin(targets, (0, 1)).all():
            message = f"{part} targets must be 0 or 1, (N, {count or 'labels'}); got {targets.dtype} {targets.shape}"
            raise UserError("E131", message, "give one column for each label")
    if names and len(names) != count:
        raise UserError("E131", f"there are {len(names)} labels for {count} columns of targets", "name each label once")
    found: dict[str, Given] = {part: (inputs, targets.astype(np.float32)) for part, (inputs, targets) in splits.items()}
    return found, names or tuple(str(k) for k in range(count))


def _pixels(inputs: Array) -> Array:
    """Images of uint8 or uint16 as (N, H, W, channels)."""
    if inputs.dtype in _PIXELS and inputs.ndim == _IMAGE_AXES - 1:
        return inputs[..., np.newaxis]
    if inputs.dtype in _PIXELS and inputs.ndim == _IMAGE_AXES and inputs.shape[3] in _CHANNELS:
        return inputs
    if inputs.dtype in _PIXELS and inputs.ndim == _IMAGE_AXES and inputs.shape[1] in _CHANNELS:
        return np.ascontiguousarray(inputs.transpose(0, 2, 3, 1))
    rule = "images of uint8 or uint16 must be (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W)"
    raise UserError("E131", f"{rule}; got {inputs.dtype} {inputs.shape}", "save inputs that are not images as float32")


def _numbers(inputs: Array) -> Array:
    if np.issubdtype(inputs.dtype, np.floating):
        return inputs.astype(np.float32)
    if np.issubdtype(inputs.dtype, np.integer):
        return inputs.astype(np.int64)
    raise UserError("E131", f"inputs and targets must be numbers; got {inputs.dtype}", "give float32, int64 or uint8")
