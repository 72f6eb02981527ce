"""The dense modules from which the golden folders descend."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def normed() -> nn.Module:
    """A convolutional network whose batch norm can be folded."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 3),
    )


class Written(nn.Module):
    """A network with a width written into its code, so that a cut of it is a rewritten program."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3)
        self.second = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(128, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.reshape(-1, 8 * 16))


def written() -> nn.Module:
    return Written()


class Block(nn.Linear):
    """A residual layer."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x).relu()


def residual() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), Block(12, 12), Block(12, 12), Block(12, 12), nn.Linear(12, 3))


def wide() -> nn.Module:
    """A perceptron that teaches `narrow`."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 3))


def narrow() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 3))


def images() -> tuple[Tensor, Tensor]:
    """Three classes of 8×8 images."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(120) % 3
    inputs = 0.3 * torch.randn(120, 1, 8, 8, generator=generator)
    inputs[targets == 0, :, 3, :] += 1.0
    inputs[targets == 1, :, :, 3] += 1.0
    return inputs, targets
