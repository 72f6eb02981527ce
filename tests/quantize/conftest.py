"""Data that several tests of quantization share."""

from __future__ import annotations

import pytest
import torch

from mirabelle import Task


@pytest.fixture(scope="session")
def stripes() -> Task:
    """Images of 8 × 8 pixels with a row, a column, or neither."""
    draw = torch.Generator().manual_seed(0)
    images, classes = torch.randn(400, 1, 8, 8, generator=draw) * 0.6, torch.arange(400) % 3
    images[classes == 1, :, 2] += 1
    images[classes == 2, :, :, 2] += 1
    return Task(train=(images, classes), test=(images, classes))
