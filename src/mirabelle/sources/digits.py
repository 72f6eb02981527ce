"""scikit-learn's bundled handwritten digits: 1,797 images of 8×8, offline."""

from __future__ import annotations

import torch

from mirabelle.preprocessing import Image
from mirabelle.task import Task


def digits() -> Task:
    """Images (1, 8, 8) in [0, 1], ten classes; 1,197 to train, 200 to validate, 400 to test, always the same.

    Source: Alpaydin & Kaynak 1998, UCI, "Optical recognition of handwritten digits"; shipped with scikit-learn.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    targets = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    test, validation, train = order[:400], order[400:600], order[600:]
    return Task(
        train=(images[train], targets[train]),
        validation=(images[validation], targets[validation]),
        test=(images[test], targets[test]),
        labels=tuple("0123456789"),
        name="digits",
        preprocessing=Image(size=(8, 8)),
    )
