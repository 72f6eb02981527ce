"""Pictures for a face detector where there are none of faces: natural ones, put together from CIFAR-10."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import mirabelle
from mirabelle.sources import task_from
from mirabelle.task.preprocessing import Image

AS_TRAINED = Image(size=(240, 320), mode="RGB", mean=(127 / 255,) * 3, deviation=(128 / 255,) * 3)
ROWS, COLUMNS = 3, 4  # of photos in a picture, each enlarged to 80 × 80


def pictures(data_dir: Path, train: int = 800, validation: int = 100, test: int = 200) -> mirabelle.Task:
    """So many pictures, without labels: later detectors are held against what the first one gives for them."""
    photos = task_from("cifar10", {}, data_folder=data_dir, folder=Path())
    return mirabelle.Task(
        train=_enlarged(photos.train.first(train * ROWS * COLUMNS).inputs),
        validation=_enlarged(photos.validation.first(validation * ROWS * COLUMNS).inputs),
        test=_enlarged(photos.test.first(test * ROWS * COLUMNS).inputs),
        extra_metrics=("cosine_similarity", "negative_relative_error"),
        name="pictures",
        preprocessing=AS_TRAINED,
    )


def _enlarged(photos: Tensor) -> Tensor:
    """Photos (n, 3, 32, 32), scaled as CIFAR-10 is, to pictures (n / 12, 3, 240, 320), scaled as the detector takes them."""
    mean, deviation = (torch.tensor(part)[:, None, None] for part in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    large = F.interpolate((photos * deviation + mean).clamp(0, 1), (80, 80), mode="bilinear")
    grid = large.reshape(-1, ROWS, COLUMNS, 3, 80, 80).permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, 240, 320)
    return (grid * 255 - 127) / 128
