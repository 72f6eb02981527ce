"""Credit default: several perceptrons that vote, and a tiny one."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def perceptron(widths: tuple[int, ...], dropout: float = 0.0) -> nn.Sequential:
    """23 columns to 2 classes through hidden layers of these widths."""
    layers: list[nn.Module] = []
    for before, after in zip((23, *widths), widths, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 2))


class Committee(nn.Module):
    """The mean of the members' scores."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


def committee() -> Committee:
    """Five perceptrons of two hidden layers, each with units of its own dropped while it learns."""
    return Committee([perceptron((256, 128), dropout=0.3) for _ in range(5)])


def tiny() -> nn.Sequential:
    return perceptron((32, 16))
