"""The handwritten digits bundled with scikit-learn: 1,797 images of 8×8 pixels; needs no download."""

from __future__ import annotations

import numpy as np
import torch

from mirabelle.numerics.draws import generator_from
from mirabelle.sources.datasets.image_settings import AS_PUBLISHED, BuiltInImages
from mirabelle.task.preprocessing import Image
from mirabelle.task.task import Task

_LEVELS = 16  # largest pixel value


def digits(images: BuiltInImages = AS_PUBLISHED) -> Task:
    """The task of classifying 8×8 digits: images (1, 8, 8) in [0, 1], ten classes.

    1,197 samples for training, 200 for validation and 400 for test, in a fixed split.

    Args:
        images: changes how images become inputs.

    Source: Alpaydin & Kaynak 1998, UCI, "Optical recognition of handwritten digits"; shipped with scikit-learn.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    image = images.of(Image(size=(8, 8)))
    inputs = torch.from_numpy(image.scaled(np.expand_dims(bunch.images, -1) * (255 / _LEVELS)))
    targets = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(targets), generator=generator_from(0))
    test, validation, train = order[:400], order[400:600], order[600:]
    return Task(
        train=(inputs[train], targets[train]),
        validation=(inputs[validation], targets[validation]),
        test=(inputs[test], targets[test]),
        labels=tuple("0123456789"),
        name="digits",
        preprocessing=image,
    )
