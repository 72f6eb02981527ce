"""Networks and data that are learned in a fraction of a second, with what has a state of its own: dropout, batch norm."""

from __future__ import annotations

import torch
from torch import nn

from mirabelle import Task


def task() -> Task:
    """Three classes of points in eight dimensions, far enough from easy that the best epoch is seldom the last."""
    generator = torch.Generator().manual_seed(0)
    centers = 1.2 * torch.randn(3, 8, generator=generator)
    targets = torch.arange(600) % 3
    inputs = centers[targets] + torch.randn(600, 8, generator=generator)
    return Task(
        train=(inputs[:400], targets[:400]),
        validation=(inputs[400:500], targets[400:500]),
        test=(inputs[500:], targets[500:]),
        labels=("a", "b", "c"),
        name="points",
    )


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def stateful(hidden: int = 16) -> nn.Sequential:
    """Running statistics and random masks between two layers."""
    return nn.Sequential(nn.Linear(8, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 3))
