"""Chest X-rays of 28 × 28: a small convolutional network of two classes."""

from torch import nn


def net(width: int = 32) -> nn.Sequential:
    """Three pairs of convolutions with norms, pooled to one number a channel."""
    layers: list[nn.Module] = []
    channels = 1
    for out in (width, 2 * width, 4 * width):
        for inner in (out, out):
            layers += [nn.Conv2d(channels, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()]
            channels = inner
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2))
