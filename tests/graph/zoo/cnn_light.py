"""Convolutional classifiers made of depthwise, grouped and cheap convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .architecture import Architecture, arguments, floats
from .cnn import Classifier, ConvNorm, SqueezeExcite


class Separable(nn.Sequential):
    """A depthwise and a pointwise convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = ConvNorm(inputs, inputs, 3, stride, groups=inputs)
        self.pointwise = ConvNorm(inputs, outputs, 1)


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, squeeze and excite if asked to, project; added to the input if the sizes allow."""

    def __init__(
        self,
        inputs: int,
        inner: int,
        outputs: int,
        stride: int = 1,
        *,
        squeezed: int = 0,
        activation: type[nn.Module] = nn.ReLU6,
        gate: type[nn.Module] = nn.Sigmoid,
    ) -> None:
        super().__init__()
        self.expand = ConvNorm(inputs, inner, 1, activation=activation)
        self.depthwise = ConvNorm(inner, inner, 3, stride, groups=inner, activation=activation)
        self.excite = SqueezeExcite(inner, squeezed, gate) if squeezed else nn.Identity()
        self.project = ConvNorm(inner, outputs, 1, activation=None)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.project(self.excite(self.depthwise(self.expand(x))))
        return x + out if self.residual else out


class MobileNetV3(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 12, 3, 2, activation=nn.Hardswish)
        self.blocks = nn.Sequential(
            InvertedResidual(12, 24, 16, squeezed=8, activation=nn.ReLU, gate=nn.Hardsigmoid),
            InvertedResidual(16, 32, 16, squeezed=8, activation=nn.Hardswish, gate=nn.Hardsigmoid),
            InvertedResidual(16, 40, 20, 2, activation=nn.Hardswish),
        )
        self.last = ConvNorm(20, 40, 1, activation=nn.Hardswish)
        self.classifier = nn.Sequential(nn.Linear(40, 48), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(48, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.last(self.blocks(self.stem(x))), 1).flatten(1))


def shuffled(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Channels (groups, width) read as (width, groups)."""
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width)
    return x.transpose(1, 2).contiguous().view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """Grouped 1×1, shuffle, depthwise, grouped 1×1; the strided kind appends to a pooled input."""

    def __init__(self, inputs: int, inner: int, outputs: int, groups: int, stride: int) -> None:
        super().__init__()
        self.groups = groups
        self.strided = stride == 2
        self.reduce = ConvNorm(inputs, inner, 1, groups=groups)
        self.depthwise = ConvNorm(inner, inner, 3, stride, groups=inner, activation=None)
        self.expand = ConvNorm(inner, outputs - inputs if self.strided else outputs, 1, groups=groups, activation=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.expand(self.depthwise(shuffled(self.reduce(x), self.groups)))
        if self.strided:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), out], 1))
        return F.relu(x + out)


class ShuffleUnitV2(nn.Module):
    """Half of the channels pass, half are convolved, then both are shuffled."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.strided = stride == 2
        branch_inputs = inputs if self.strided else inputs // 2
        if self.strided:
            self.pooled = nn.Sequential(
                ConvNorm(inputs, inputs, 3, 2, groups=inputs, activation=None), ConvNorm(inputs, half, 1)
            )
        self.branch = nn.Sequential(
            ConvNorm(branch_inputs, half, 1),
            ConvNorm(half, half, 3, stride, groups=half, activation=None),
            ConvNorm(half, half, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.strided:
            return shuffled(torch.cat([self.pooled(x), self.branch(x)], 1), 2)
        kept, worked = x.chunk(2, dim=1)
        return shuffled(torch.cat([kept, self.branch(worked)], 1), 2)


class Ghost(nn.Module):
    """Half of the channels are convolved, the other half are cheap functions of the first."""

    def __init__(self, inputs: int, outputs: int, activation: type[nn.Module] | None = nn.ReLU) -> None:
        super().__init__()
        self.outputs = outputs
        primary = (outputs + 1) // 2
        self.primary = ConvNorm(inputs, primary, 1, activation=activation)
        self.cheap = ConvNorm(primary, primary, 3, groups=primary, activation=activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        primary = self.primary(x)
        return torch.cat([primary, self.cheap(primary)], 1)[:, : self.outputs]


class GhostBottleneck(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.expand = Ghost(width, inner)
        self.excite = SqueezeExcite(inner, 8, nn.Hardsigmoid)
        self.project = Ghost(inner, width, activation=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.project(self.excite(self.expand(x)))


class ConvNextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.project = nn.Linear(2 * width, width)
        self.layer_scale = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        out = self.layer_scale * self.project(F.gelu(self.expand(out)))
        return x + out.permute(0, 3, 1, 2)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of an image, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class GlobalResponseNorm(nn.Module):
    """ConvNeXt V2: each channel scaled by its norm over space, relative to the mean over channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.shift = nn.Parameter(torch.zeros(1, 1, 1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        return self.scale * (x * norm / (norm.mean(-1, keepdim=True) + 1e-6)) + self.shift + x


class ConvNextV2Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.response = GlobalResponseNorm(2 * width)
        self.project = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        out = self.project(self.response(F.gelu(self.expand(out))))
        return x + out.permute(0, 3, 1, 2)


class RepVggBlock(nn.Module):
    """A 3×3, a 1×1 and an identity branch, each normalized, summed."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.dense = ConvNorm(inputs, outputs, 3, stride, activation=None)
        self.point = ConvNorm(inputs, outputs, 1, stride, activation=None)
        self.identity = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.dense(x) + self.point(x)
        return F.relu(out if self.identity is None else out + self.identity(x))


def mobilenet_v1() -> nn.Module:
    return Classifier(nn.Sequential(ConvNorm(3, 8, 3, 2), Separable(8, 16), Separable(16, 24, 2), Separable(24, 32)), 32)


def mobilenet_v2() -> nn.Module:
    blocks = (InvertedResidual(8, 24, 12), InvertedResidual(12, 36, 12), InvertedResidual(12, 36, 16, 2))
    return Classifier(nn.Sequential(ConvNorm(3, 8, 3, 2, activation=nn.ReLU6), *blocks, ConvNorm(16, 40, 1)), 40)


def efficientnet() -> nn.Module:
    blocks = (
        InvertedResidual(8, 24, 12, 2, squeezed=6, activation=nn.SiLU),
        InvertedResidual(12, 36, 12, squeezed=6, activation=nn.SiLU),
    )
    return Classifier(nn.Sequential(ConvNorm(3, 8, activation=nn.SiLU), *blocks, ConvNorm(12, 40, 1, activation=nn.SiLU)), 40)


def shufflenet_v1() -> nn.Module:
    units = (ShuffleUnit(16, 8, 32, 4, 2), ShuffleUnit(32, 16, 32, 4, 1))
    return Classifier(nn.Sequential(ConvNorm(3, 16), *units), 32)


def shufflenet_v2() -> nn.Module:
    units = (ShuffleUnitV2(12, 24, 2), ShuffleUnitV2(24, 24, 1), ShuffleUnitV2(24, 24, 1))
    return Classifier(nn.Sequential(ConvNorm(3, 12), *units, ConvNorm(24, 40, 1)), 40)


def ghostnet() -> nn.Module:
    return Classifier(nn.Sequential(ConvNorm(3, 15), GhostBottleneck(15, 32), GhostBottleneck(15, 40)), 15)


def convnext() -> nn.Module:
    down = nn.Sequential(ChannelNorm(12), nn.Conv2d(12, 24, 2, 2))
    return Classifier(nn.Sequential(nn.Conv2d(3, 12, 2, 2), ConvNextBlock(12), down, ConvNextBlock(24), ChannelNorm(24)), 24)


def convnext_v2() -> nn.Module:
    return Classifier(nn.Sequential(nn.Conv2d(3, 16, 2, 2), ConvNextV2Block(16), ConvNextV2Block(16)), 16)


def repvgg() -> nn.Module:
    return Classifier(nn.Sequential(RepVggBlock(3, 12, 2), RepVggBlock(12, 12), RepVggBlock(12, 24, 2)), 24)


IMAGES = arguments(floats(2, 3, 21, 27))

ARCHITECTURES = (
    Architecture("mobilenet_v1", "cnn", mobilenet_v1, IMAGES),
    Architecture("mobilenet_v2", "cnn", mobilenet_v2, IMAGES),
    Architecture("mobilenet_v3", "cnn", MobileNetV3, IMAGES),
    Architecture("efficientnet", "cnn", efficientnet, IMAGES),
    Architecture("shufflenet_v1", "cnn", shufflenet_v1, IMAGES),
    Architecture("shufflenet_v2", "cnn", shufflenet_v2, IMAGES),
    Architecture("ghostnet", "cnn", ghostnet, IMAGES),
    Architecture("convnext", "cnn", convnext, IMAGES),
    Architecture("convnext_v2", "cnn", convnext_v2, IMAGES),
    Architecture("repvgg", "cnn", repvgg, IMAGES),
)
