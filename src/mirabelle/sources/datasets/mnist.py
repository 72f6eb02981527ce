"""MNIST, read from its four original IDX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mirabelle.errors import UserError
from mirabelle.numerics.draws import generator_from
from mirabelle.sources.datasets.idx import read_idx
from mirabelle.sources.datasets.image_settings import AS_PUBLISHED, BuiltInImages
from mirabelle.task.preprocessing import Image
from mirabelle.task.task import Task

_IMAGE = Image(
    size=(28, 28), mean=(0.1307,), deviation=(0.3081,)
)  # mean and standard deviation of the training pixels in [0, 1]
_HELD_OUT = 5_000


def mnist(folder: Path, images: BuiltInImages = AS_PUBLISHED) -> Task:
    """The MNIST task: images (1, 28, 28), scaled to (pixel / 255 − 0.1307) / 0.3081, ten classes.

    55,000 samples for training, 5,000 for validation (a fixed part of the training set) and 10,000 for test.

    Args:
        folder: contains train-images-idx3-ubyte.gz and the other three files, compressed or not, or a folder "mnist" with them.
        images: changes how images become inputs.

    Raises:
        UserError: E130 if a file is missing, E131 if it is not an IDX file of the right length.

    Source: LeCun, Cortes, Burges 1998, "The MNIST database of handwritten digits".
    """
    folder = folder / "mnist" if (folder / "mnist").is_dir() else folder
    image = images.of(_IMAGE)
    train = _split(folder, "train", 60_000, image)
    order = torch.randperm(len(train[1]), generator=generator_from(0))
    held, rest = order[:_HELD_OUT], order[_HELD_OUT:]
    return Task(
        train=(train[0][rest], train[1][rest]),
        validation=(train[0][held], train[1][held]),
        test=_split(folder, "t10k", 10_000, image),
        labels=tuple("0123456789"),
        name="mnist",
        preprocessing=image,
    )


def _split(folder: Path, name: str, count: int, image: Image) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = _values(folder, f"{name}-images-idx3-ubyte", shape=(count, 28, 28))
    labels = _values(folder, f"{name}-labels-idx1-ubyte", shape=(count,))
    images = image.scaled(pixels[..., np.newaxis])
    return torch.from_numpy(images), torch.from_numpy(labels).long()


def _values(folder: Path, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    path = next((folder / f"{name}{end}" for end in (".gz", "") if (folder / f"{name}{end}").is_file()), None)
    if path is None:
        raise UserError("E130", f"no {name}.gz in {folder}", "give the folder by --data-dir or MIRABELLE_DATA")
    values = read_idx(path)
    if values.dtype != np.uint8 or values.shape != shape:
        message = f"{path} has {values.dtype} {values.shape}, and MNIST has uint8 {shape}"
        raise UserError("E131", message, 'download the original file again; for other IDX files write data = "./folder"')
    return values
