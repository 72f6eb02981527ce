"""Convolutions: their groups, the channels they share out, and the pixels that channels become."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from zoo.architecture import Architecture, arguments, floats

from .common import IMAGES


class GroupConv(nn.Module):
    """Twelve channels in and twenty-four out, in four groups."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.grouped = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 24, 3, groups=4)
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.grouped(F.relu(self.conv1(x)))))


class TransposedGroupConv(nn.Module):
    """Sixteen channels in and twenty-four out, in four groups; the weight lies the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.grouped = nn.Conv2d(3, 16, 3), nn.ConvTranspose2d(16, 24, 3, 2, groups=4)
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.grouped(F.relu(self.conv1(x)))))


class ChannelShuffle(nn.Module):
    """A shuffle between two ordinary convolutions: a permutation of 24 free channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 16, 3)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1(x))
        batch, channels, height, width = x.shape
        x = x.view(batch, 3, channels // 3, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.head(F.relu(self.conv2(x)))


class GroupedChannelShuffle(nn.Module):
    """A shuffle between two grouped convolutions: the groups of one are the positions within a group of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.grouped1, self.grouped2 = nn.Conv2d(16, 16, 1, groups=4), nn.Conv2d(16, 24, 3, groups=4)
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.grouped1(F.relu(self.conv(x))))
        x = x.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
        return self.head(F.relu(self.grouped2(x)))


class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 32, 3), nn.Conv2d(8, 12, 3)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.conv2(F.relu(F.pixel_shuffle(self.conv1(x), 2)))))


class PixelUnshuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 2), nn.Conv2d(32, 12, 3)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.conv2(F.pixel_unshuffle(F.relu(self.conv1(x)), 2))))


class DepthwiseMultiplier(nn.Module):
    """Two filters for every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.depthwise = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 24, 3, groups=12)
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.depthwise(F.relu(self.conv1(x)))))


class SquareGroups(nn.Module):
    """As many groups as outputs, and yet no depthwise convolution: three inputs per group."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.grouped = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 8, 3, groups=8)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.grouped(F.relu(self.conv1(x)))))


class SingleOutputChannel(nn.Module):
    """A map of one channel weighs all others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.map = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 1, 1)
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1(x))
        return self.head(x * torch.sigmoid(self.map(x)))


class ConvWithoutBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(16, 24, 3, bias=False)
        self.head = nn.Linear(24, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.conv2(F.relu(self.conv1(x)))).mean((2, 3)))


class GroupsOfGroups(nn.Module):
    """Three groups and then six, a norm over three between them: what is tied to one unit is all or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped1, self.grouped2 = nn.Conv2d(6, 12, 3, groups=3), nn.Conv2d(12, 24, 3, groups=6)
        self.norm, self.head = nn.GroupNorm(3, 12), nn.Conv2d(24, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.grouped2(F.relu(self.norm(self.grouped1(x))))))


class Unpooled(nn.Module):
    """Maxima that go back to where they were found tie the channels of two layers that share no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1)
        self.conv3, self.head = nn.Conv2d(16, 12, 3, padding=1), nn.Conv2d(12, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        pooled, places = F.max_pool2d(x, 2, return_indices=True)
        y = self.conv3(F.relu(self.conv2(pooled)))
        return self.head(F.max_unpool2d(y, places, 2, output_size=x.shape[2:]))


ARCHITECTURES = (
    Architecture("group_conv", "pitfall", GroupConv, IMAGES),
    Architecture("transposed_group_conv", "pitfall", TransposedGroupConv, IMAGES),
    Architecture("channel_shuffle", "pitfall", ChannelShuffle, IMAGES),
    Architecture("grouped_channel_shuffle", "pitfall", GroupedChannelShuffle, IMAGES),
    Architecture("pixel_shuffle", "pitfall", PixelShuffle, IMAGES),
    Architecture("pixel_unshuffle", "pitfall", PixelUnshuffle, IMAGES),
    Architecture("depthwise_multiplier", "pitfall", DepthwiseMultiplier, IMAGES),
    Architecture("unpooled", "pitfall", Unpooled, IMAGES),
    Architecture("groups_of_groups", "pitfall", GroupsOfGroups, arguments(floats(2, 6, 11, 13))),
    Architecture("square_groups", "pitfall", SquareGroups, IMAGES),
    Architecture("single_output_channel", "pitfall", SingleOutputChannel, IMAGES),
    Architecture("conv_without_bias", "pitfall", ConvWithoutBias, IMAGES),
)
