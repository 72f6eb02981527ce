"""Norms, and other functions of all channels at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from zoo.architecture import Architecture

from .common import IMAGES, SEQUENCES, VECTORS


class GroupNorm(nn.Module):
    """Six groups of four channels: a group goes whole."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.head = nn.Conv2d(3, 24, 3), nn.GroupNorm(6, 24), nn.Conv2d(24, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.norm(self.conv1(x))))


class OneGroupNorm(nn.Module):
    """One group of all channels: a statistic of those that stay, as in layer normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.head = nn.Conv2d(3, 24, 3), nn.GroupNorm(1, 24), nn.Conv2d(24, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.norm(self.conv1(x))))


class InstanceNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.head = nn.Conv2d(3, 24, 3), nn.InstanceNorm2d(24, affine=True), nn.Conv2d(24, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.norm(self.conv1(x))))


class BatchNormWithoutAffine(nn.Module):
    """Nothing but two buffers belongs to each channel of the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.head = nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24, affine=False), nn.Conv2d(24, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.norm(self.conv1(x))))


class RootMeanSquareNorm(nn.Module):
    """Written out; the mean is over the kept channels when some are cut."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(9, 16), nn.Linear(16, 24), nn.Linear(24, 5)
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        return self.head(F.relu(self.fc2(x)))


class WholeImageNorm(nn.Module):
    """A layer norm over channels and pixels at once, with a scale for each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.head = nn.Conv2d(3, 16, 3), nn.LayerNorm((16, 9, 11)), nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.norm(self.conv1(x))))


class CosineSimilarity(nn.Module):
    """Two vectors are scaled to length one before their product."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(9, 16), nn.Linear(9, 16)
        self.fc, self.head = nn.Linear(11, 24), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = F.normalize(self.one(x), dim=-1), F.normalize(self.other(x), dim=-1)
        return self.head(F.relu(self.fc(one @ other.transpose(1, 2))))


class MaxOverChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3)
        self.fc, self.head = nn.Linear(9, 20), nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.fc(self.conv2(F.relu(self.conv1(x))).amax(1))))


class SoftmaxOverChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Conv2d(24, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.softmax(self.conv2(F.relu(self.conv1(x))), 1))


class SumOverChannels(nn.Module):
    """A sum is exact whatever goes, a cumulative sum is not."""

    def __init__(self) -> None:
        super().__init__()
        self.summed, self.accumulated = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 24, 3)
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.tanh(self.summed(x)).sum(1, keepdim=True)
        return self.head(torch.cumsum(self.accumulated(x), 1) * total)


class ChosenChannels(nn.Module):
    """The largest channels in order: which ones depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(9, 16), nn.Linear(16, 24), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values, _ = torch.topk(self.fc2(torch.tanh(self.fc1(x))), 8, -1)
        return self.head(values)


ARCHITECTURES = (
    Architecture("group_norm", "pitfall", GroupNorm, IMAGES),
    Architecture("one_group_norm", "pitfall", OneGroupNorm, IMAGES),
    Architecture("instance_norm", "pitfall", InstanceNorm, IMAGES),
    Architecture("batch_norm_without_affine", "pitfall", BatchNormWithoutAffine, IMAGES),
    Architecture("root_mean_square_norm", "pitfall", RootMeanSquareNorm, VECTORS),
    Architecture("whole_image_norm", "pitfall", WholeImageNorm, IMAGES),
    Architecture("cosine_similarity", "pitfall", CosineSimilarity, SEQUENCES),
    Architecture("max_over_channels", "pitfall", MaxOverChannels, IMAGES),
    Architecture("softmax_over_channels", "pitfall", SoftmaxOverChannels, IMAGES),
    Architecture("sum_over_channels", "pitfall", SumOverChannels, IMAGES),
    Architecture("chosen_channels", "pitfall", ChosenChannels, VECTORS),
)
