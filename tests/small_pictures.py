"""A small network with a grouped convolution, pictures with equal neighbours, and how far two models are apart."""

from __future__ import annotations

import torch
from torch import nn

from mirabelle import Task


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10),
    ).eval()  # fmt: skip


def small_pictures() -> Task:
    torch.manual_seed(0)
    x = torch.randn(150, 3, 8, 8).cumsum(-1).cumsum(1)
    return Task(train=(x, torch.arange(150) % 10), test=(x, torch.arange(150) % 10))


def distance(model: nn.Module, other: nn.Module, task: Task) -> float:
    """‖y − ŷ‖ / ‖y‖ of the outputs of two models on the test set."""
    with torch.no_grad():
        one, two = model(task.test.inputs), other(task.test.inputs)
    return float((one - two).norm() / one.norm())
