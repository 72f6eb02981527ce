"""Read a task from arrays in an .npz file, named as in MedMNIST or by common habits, or in a folder of IDX files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError
from mirabelle.sources.datasets.idx import idx_splits
from mirabelle.sources.datasets.splits import Split, as_task, completed
from mirabelle.task.preprocessing.image import Image, mean_and_deviation, white_of
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.settings import Arrays

Array = npt.NDArray[Any]
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
        splits = idx_splits(path) if path.is_dir() else _splits(path, labelled=settings.kind != "unlabelled")
        return _task(splits, path.stem, settings)
    except UserError as error:
        raise error if str(path) in error.message else error.at(str(path)) from None


def _task(splits: dict[str, Split], name: str, settings: Arrays) -> Task:
    kind = settings.kind or _kind(splits)
    labels: tuple[str, ...] = ()
    if kind == "unlabelled":
        splits = {part: (x, _no_targets(x)) for part, (x, _) in splits.items()}
    elif kind == "classification":
        splits, labels = _classes(splits, settings.labels)
    elif kind == "multi-label":
        splits, labels = _multi_label(splits, settings.labels)
    else:
        splits = {part: (x, _quantities(y)) for part, (x, y) in splits.items()}
    is_pixels = splits["train"][0].dtype in _PIXELS and splits["train"][0].ndim >= _IMAGE_AXES - 1
    splits = {part: (_pixels(x) if is_pixels else _numbers(x), y) for part, (x, y) in splits.items()}
    if len({(x.shape[1:], x.dtype) for x, _ in splits.values()}) > 1:
        shapes = ", ".join(f"{part} {x.dtype} {x.shape[1:]}" for part, (x, _) in splits.items())
        raise UserError("E131", f"the splits differ in shape or type: {shapes}", "give samples of the same shape and type")
    splits = completed(
        splits, settings.test_fraction, settings.validation_fraction, settings.seed, labels if kind == "classification" else ()
    )
    return _of_pixels(splits, labels, name, settings) if is_pixels else as_task(splits, labels, name, None, settings)


def _of_pixels(splits: dict[str, Split], labels: tuple[str, ...], name: str, settings: Arrays) -> Task:
    """The task of images as arrays (N, height, width, channels) of uint8 or uint16."""
    train = splits["train"][0]
    _, height, width, channels = train.shape
    deep = train.dtype != np.uint8
    image = Image(
        size=(height, width), mode="L" if channels == 1 else "RGB", white=white_of(float(train.max())) if deep else None
    )
    ready: dict[str, Split] = {
        part: (image.as_bytes(x.astype(np.float32) if deep else x), y) for part, (x, y) in splits.items()
    }
    mean, deviation = mean_and_deviation(ready["train"][0])
    image = replace(image, mean=settings.mean or mean, deviation=settings.deviation or deviation, layout=settings.layout)
    notes = [f"The images have 16 bits; {image.white:,g} counts as white, from the largest training value."] if deep else []
    return as_task(ready, labels, name, image, settings).replace(notes=tuple(notes))


def _splits(path: Path, *, labelled: bool) -> dict[str, Split]:
    """(inputs, targets) by split, of equal lengths; if `labelled` is false, targets have shape (samples, 0)."""
    arrays = read_arrays(path)
    if not labelled:
        pairs = [pair for layout in _LAYOUTS for pair in layout.values()]
        arrays |= {other: _no_targets(arrays[own]) for own, other in pairs if own in arrays}
    layout = next((layout for layout in _LAYOUTS if set(layout["train"]) & set(arrays)), None)
    if layout is None:
        known = "; ".join(" and ".join(layout["train"]) for layout in _LAYOUTS)
        message = f"{path} contains {', '.join(arrays) or 'no array'}, and no training data under a known name"
        raise UserError("E131", message, f"name the training data {known}")
    splits = {}
    for name, pair in layout.items():
        present = [key for key in pair if key in arrays]
        if len(present) == 1:
            remedy = f'give both {" and ".join(pair)}, or write kind = "unlabelled" for inputs without targets'
            raise UserError("E131", f"{path} has {present[0]}, but not its counterpart", remedy)
        if present:
            inputs, targets = (np.ascontiguousarray(arrays[key]) for key in pair)
            lengths = [array.shape[0] if array.ndim else 0 for array in (inputs, targets)]
            if lengths[0] != lengths[1] or not lengths[0]:
                message = (
                    f"{path}: {pair[0]} and {pair[1]} must have the same length, above 0; got {lengths[0]} and {lengths[1]}"
                )
                raise UserError("E131", message, "give one target for each input")
            splits[name] = (inputs, targets)
    return splits


def _no_targets(inputs: Array) -> Array:
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


def _kind(splits: Mapping[str, Split]) -> Literal["classification", "regression"]:
    whole = all(np.issubdtype(targets.dtype, np.integer) or targets.dtype == bool for _, targets in splits.values())
    return "classification" if whole else "regression"


def _quantities(targets: Array) -> Array:
    """Targets as float32, (N, ...), at least (N, 1)."""
    numbers: Array = _numbers(targets).astype(np.float32)
    return numbers[:, np.newaxis] if numbers.ndim == 1 else numbers


def _classes(splits: Mapping[str, Split], names: tuple[str, ...]) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The splits with targets as int64 (N,), and the names of the classes; by default numbers, as the training data need."""
    found: dict[str, Split] = {}
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


def _multi_label(splits: Mapping[str, Split], names: tuple[str, ...]) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The splits with targets as float32 (N, labels) of 0 and 1, and the names of the labels."""
    count = splits["train"][1].shape[1] if splits["train"][1].ndim == 2 else 0  # noqa: PLR2004 (samples, labels)
    for part, (_, targets) in splits.items():
        if not count or targets.shape[1:] != (count,) or not np.isin(targets, (0, 1)).all():
            message = f"{part} targets must be 0 or 1, (N, {count or 'labels'}); got {targets.dtype} {targets.shape}"
            raise UserError("E131", message, "give one column for each label")
    if names and len(names) != count:
        raise UserError("E131", f"there are {len(names)} labels for {count} columns of targets", "name each label once")
    found = {part: (inputs, targets.astype(np.float32)) for part, (inputs, targets) in splits.items()}
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
