"""A small convolutional network for CIFAR-10."""

from __future__ import annotations

from torch import nn


def net(width: int = 32) -> nn.Sequential:
    """(batch, 3, 32, 32) to ten classes: three convolutions with norms, of width, 2 · width and 4 · width channels."""
    layers: list[nn.Module] = []
    channels = 3
    for out in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
