"""CIFAR-10, read from the six files of its binary version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mirabelle.errors import UserError
from mirabelle.numerics.arrays import to_numpy
from mirabelle.numerics.draws import generator_from
from mirabelle.sources.datasets.image_settings import AS_PUBLISHED, BuiltInImages
from mirabelle.task.preprocessing import Image
from mirabelle.task.task import Task

Bytes = npt.NDArray[np.uint8]
Split = tuple[torch.Tensor, torch.Tensor]

_IMAGE = Image(size=(32, 32), mode="RGB", mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225))
_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = ("test_batch.bin",)
_PLACES = ("", "cifar10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin")
_RECORD = 1 + 3 * 32 * 32  # the class, then the red, green and blue plane
_RECORDS = 10_000  # in each file
_HELD_OUT = 5_000
_CHUNK = 1_000


def cifar10(folder: Path, images: BuiltInImages = AS_PUBLISHED) -> Task:
    """The CIFAR-10 task: images (3, 32, 32), scaled to (pixel / 255 − mean) / deviation, ten classes.

    45,000 samples for training, 5,000 for validation (a fixed part of the training set) and 10,000 for test. The mean
    (0.485, 0.456, 0.406) and the standard deviation (0.229, 0.224, 0.225) are those used for most published weights.

    Args:
        folder: contains data_batch_1.bin to data_batch_5.bin and test_batch.bin, or a folder "cifar10" or
            "cifar-10-batches-bin" with them.
        images: changes how images become inputs.

    Raises:
        UserError: E130 if a file is missing, E131 if it does not have 10,000 valid records.

    Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
    """
    folder = next((folder / place for place in _PLACES if (folder / place / _TRAIN[0]).is_file()), folder)
    image = images.of(_IMAGE)
    train = np.concatenate([_records(folder / name) for name in _TRAIN])
    order = to_numpy(torch.randperm(len(train), generator=generator_from(0)))
    return Task(
        train=_split(train, order[_HELD_OUT:], image),
        validation=_split(train, order[:_HELD_OUT], image),
        test=_split(_records(folder / _TEST[0]), np.arange(_RECORDS), image),
        labels=_LABELS,
        name="cifar10",
        preprocessing=image,
    )


def _split(records: Bytes, order: npt.NDArray[np.int64], image: Image) -> Split:
    """(inputs, targets) of the selected records, scaled in chunks, so that only one float32 copy of the images is in memory."""
    images = np.empty((len(order), *image.shape), np.float32)
    for start in range(0, len(order), _CHUNK):
        planes = records[order[start : start + _CHUNK], 1:].reshape(-1, image.channels, *image.size)
        images[start : start + _CHUNK] = image.scaled(np.moveaxis(planes, 1, -1))
    return torch.from_numpy(images), torch.from_numpy(records[order, 0].astype(np.int64))


def _records(path: Path) -> Bytes:
    """(records, bytes) of one file."""
    if not path.is_file():
        raise UserError("E130", f"no {path.name} in {path.parent}", "give the folder by --data-dir or MIRABELLE_DATA")
    values = np.fromfile(path, np.uint8)
    if len(values) != _RECORDS * _RECORD:
        rule = f"{path} must have {_RECORDS:,} records of {_RECORD:,} bytes"
        raise UserError("E131", f"{rule}; got {len(values):,} bytes", "download the binary version again")
    records = values.reshape(_RECORDS, _RECORD)
    if records[:, 0].max() >= len(_LABELS):
        rule = f"{path} must have classes from 0 to {len(_LABELS) - 1}"
        raise UserError("E131", f"{rule}; got {records[:, 0].max()}", "download the binary version again")
    return records
