"""Spoken digits: a convolutional network over log-mel features."""

from torch import nn


def net(width: int = 48) -> nn.Sequential:
    """(1, 40, frames) to 10 digits: four convolutions with norms, the last ones pooled over time."""
    layers: list[nn.Module] = []
    channels = 1
    for out in (width, width, 2 * width, 2 * width):
        layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(), nn.Dropout(0.3), nn.Linear(2 * channels, 10))


def small() -> nn.Sequential:
    return net(16)
