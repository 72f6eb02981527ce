"""Networks for the smallest files."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def four_convolutions(one: int = 8, two: int = 12, three: int = 12, four: int = 16) -> nn.Sequential:
    """Four 3×3 convolutions with batch norm and ReLU, pooled to one value for each channel, and a dense layer.

    About 4,300 parameters, inputs (batch, 1, 28, 28). Layers have names that count up, which the file needs few bytes for, and
    the last pool a fixed size, since a global one is exported with tensors of axes and shapes.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 1
    for place, outputs in enumerate((one, two, three, four), start=1):
        layers[f"conv{place}"] = nn.Conv2d(inputs, outputs, 3)
        layers[f"norm{place}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{place}"] = nn.ReLU()
        if place in (2, 3):
            layers[f"pool{place}"] = nn.MaxPool2d(2)
        inputs = outputs
    layers |= {"pool4": nn.AvgPool2d(3), "flatten": nn.Flatten(), "fc5": nn.Linear(inputs, 10)}
    return nn.Sequential(layers)
