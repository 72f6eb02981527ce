"""CIFAR-10 from the six files of its binary version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mirabelle.errors import UserError
from mirabelle.sources.datasets.settings import AS_PUBLISHED, BuiltInImages
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
    """Images (3, 32, 32), (pixel / 255 − mean) / deviation, ten classes; 45,000 to train, 5,000 to validate, 10,000 to test.

    Mean (0.485, 0.456, 0.406) and deviation (0.229, 0.224, 0.225) are those under which most published weights were trained.

    Args:
        folder: holds data_batch_1.bin … data_batch_5.bin and test_batch.bin, or has a folder "cifar10" or
            "cifar-10-batches-bin" that does.
        images: how they become inputs, where it should be otherwise.

    Raises:
        UserError: E130 when a file is missing, E131 when it is not 10,000 records of a class and an image.

    Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
    """
    folder = next((folder / place for place in _PLACES if (folder / place / _TRAIN[0]).is_file()), folder)
    image = images.of(_IMAGE)
    train = np.concatenate([_records(folder / name) for name in _TRAIN])
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).numpy()
    return Task(
        train=_split(train, order[_HELD_OUT:], image),
        validation=_split(train, order[:_HELD_OUT], image),
        test=_split(_records(folder / _TEST[0]), np.arange(_RECORDS), image),
        labels=_LABELS,
        name="cifar10",
        preprocessing=image,
    )


def _split(records: Bytes, order: npt.NDArray[np.int64], image: Image) -> Split:
    """The chosen records; scaled piece by piece, so that the images lie in memory as float32 only once."""
    images = np.empty((len(order), *image.shape), np.float32)
    for start in range(0, len(order), _CHUNK):
        planes = records[order[start : start + _CHUNK], 1:].reshape(-1, image.channels, *image.size)
        images[start : start + _CHUNK] = image.scaled(np.moveaxis(planes, 1, -1))
    return torch.from_numpy(images), torch.from_numpy(records[order, 0].astype(np.int64))


def _records(path: Path) -> Bytes:
    """(records, bytes) of one file."""
    if not path.is_file():
        raise UserError("E130", f"no {path.name} in {path.parent}", "name the folder with --data-dir or MIRABELLE_DATA")
    values = np.fromfile(path, np.uint8)
    if len(values) != _RECORDS * _RECORD:
        rule = f"{path} must hold {_RECORDS:,} records of {_RECORD:,} bytes"
        raise UserError("E131", f"{rule}; got {len(values):,} bytes", "download the binary version again")
    records = values.reshape(_RECORDS, _RECORD)
    if records[:, 0].max() >= len(_LABELS):
        rule = f"{path} must hold classes from 0 to {len(_LABELS) - 1}"
        raise UserError("E131", f"{rule}; got {records[:, 0].max()}", "download the binary version again")
    return records
