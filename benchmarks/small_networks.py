"""Networks for the smallest files."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def four_convolutions(one: int = 8, two: int = 16, three: int = 16, four: int = 16) -> nn.Sequential:
    """Four 3×3 convolutions with batch norm and ReLU, pooled to one value for each channel, and a dense layer.

    About 6,400 parameters, inputs (batch, 1, 28, 28). The second pool has a stride of 1 and the convolution behind it a dilation
    of 2: a mean over 25 places instead of 9, from the same weights. Layers have names that count up, which the file needs few
    bytes for, and the last pool a fixed size, since a global one is exported with tensors of axes and shapes.
    """
    widths = {1: (1, one), 2: (one, two), 3: (two, three), 4: (three, four)}
    pools = {2: nn.MaxPool2d(2), 3: nn.MaxPool2d(2, stride=1), 4: nn.AvgPool2d(5)}
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for place, (inputs, outputs) in widths.items():
        layers[f"conv{place}"] = nn.Conv2d(inputs, outputs, 3, dilation=2 if place == len(widths) else 1)
        layers[f"norm{place}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{place}"] = nn.ReLU()
        if place in pools:
            layers[f"pool{place}"] = pools[place]
    return nn.Sequential(layers | {"flatten": nn.Flatten(), "fc5": nn.Linear(four, 10)})
