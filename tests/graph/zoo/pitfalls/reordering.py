"""Channels written in place, broadcast, multiplied, chosen and put in another order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from zoo.architecture import Architecture, arguments, floats, integers

from .common import IMAGES, SEQUENCES, VECTORS


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu_(self.conv1(x))
        out = self.conv2(x)
        out += x
        out.mul_(0.5).clamp_(min=-1.0)
        out[:, 0] *= 2.0
        return self.head(out)


class BroadcastResidual(nn.Module):
    """A vector per image is added to every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.context = nn.Conv2d(3, 16, 3), nn.Linear(16, 16)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1(x))
        return self.head(torch.tanh(x + self.context(x.mean((2, 3)))[:, :, None, None]))


class ProductOfBranches(nn.Module):
    """Two branches meet in a batched product over their common width."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.values = nn.Linear(9, 16), nn.Linear(9, 16), nn.Linear(9, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.bmm(torch.tanh(self.one(x)), torch.tanh(self.other(x)).transpose(1, 2))
        return self.head(torch.bmm(weights, self.values(x)))


class OuterProduct(nn.Module):
    """Each pair of units of two branches is one input of the next layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.fc, self.head = nn.Linear(9, 8), nn.Linear(9, 12), nn.Linear(96, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = torch.tanh(self.one(x))[:, :, None] * torch.tanh(self.other(x))[:, None, :]
        return self.head(F.relu(self.fc(pairs.flatten(1))))


class Gathered(nn.Module):
    """One channel per sample, chosen by the data."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.choose = nn.Linear(9, 16), nn.Linear(16, 24), nn.Linear(9, 24)
        self.head = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        index = self.choose(x).topk(3, -1).indices
        return self.head(torch.gather(self.fc2(torch.tanh(self.fc1(x))), -1, index))


class GatheredTime(nn.Module):
    """One step per sample is gathered at a given place; the width passes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.head = nn.Linear(9, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.fc1(x))
        return self.head(torch.gather(x, 1, place[:, None, None].expand(-1, 1, x.shape[-1])).squeeze(1))


class ReorderedChannels(nn.Module):
    """Channels are read in another order, which a buffer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 16, 3), nn.Conv2d(16, 5, 1)
        self.register_buffer("order", torch.arange(24) * 7 % 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.index_select(F.relu(self.conv1(x)), 1, self.order)
        return self.head(F.relu(self.conv2(x)))


class MirroredSum(nn.Module):
    """Channels plus the same channels backwards: i and 15 − i are one unit."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.head = nn.Linear(9, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.fc1(x))
        return self.head(x + x.flip(-1))


class RolledChannels(nn.Module):
    """Channels moved round by one; added to themselves, so that all hang together."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(9, 16), nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.fc1(x))
        x = F.relu(self.fc2(x + x.roll(1, -1)))
        return self.head(x.roll(5, -1))


class RepeatedChannels(nn.Module):
    """Each channel is read three times: one after the other, and all over again."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.head = nn.Linear(9, 8), nn.Linear(24, 10), nn.Linear(30, 12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.fc1(x)).repeat_interleave(3, -1)
        x = torch.tanh(self.fc2(x)).repeat(1, 3)
        return self.head(F.relu(self.fc3(x)))


class PaddedChannels(nn.Module):
    """Zero channels before and after make the widths agree."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(9, 12), nn.Linear(12, 20), nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.fc1(x))
        return self.head(torch.tanh(self.fc2(x)) + F.pad(x, (3, 5)))


class UnfoldedPatches(nn.Module):
    """Patches become columns: a channel is a run of each column."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.fc, self.head = nn.Conv2d(3, 8, 3), nn.Linear(72, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = F.unfold(F.relu(self.conv1(x)), 3, stride=2)
        return self.head(F.relu(self.fc(patches.transpose(1, 2))))


class ChosenByCondition(nn.Module):
    """torch.where between two branches, under a condition that a third one computes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.test = nn.Linear(9, 16), nn.Linear(9, 16), nn.Linear(9, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.where(self.test(x) > 0, self.one(x), torch.tanh(self.other(x))))


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(9, 8), nn.Linear(9, 12)
        self.both, self.head = nn.Bilinear(8, 12, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.both(torch.tanh(self.one(x)), torch.tanh(self.other(x)))))


class Hypernetwork(nn.Module):
    """One layer's outputs are the weight of another."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.fc1, self.head = nn.Linear(9, 16 * 12), nn.Linear(9, 12), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.make(x).view(-1, 16, 12)
        return self.head(torch.tanh(torch.bmm(weight, torch.tanh(self.fc1(x))[:, :, None]).squeeze(2)))


class TwoOutputs(nn.Module):
    """Hidden features are an output too, so they must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(9, 16), nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.tanh(self.fc2(F.relu(self.fc1(x))))
        return self.head(features), features


class InputResidual(nn.Module):
    """The input is added to the result of two layers: its width is not ours to cut."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.project, self.head = nn.Linear(9, 24), nn.Linear(24, 9), nn.Linear(9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.project(F.relu(self.expand(x))))


class EmbeddingBags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.fc, self.head = nn.EmbeddingBag(50, 16, mode="sum"), nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.fc(self.bag(tokens))))


ARCHITECTURES = (
    Architecture("in_place", "pitfall", InPlace, IMAGES),
    Architecture("broadcast_residual", "pitfall", BroadcastResidual, IMAGES),
    Architecture("product_of_branches", "pitfall", ProductOfBranches, SEQUENCES),
    Architecture("outer_product", "pitfall", OuterProduct, VECTORS),
    Architecture("gathered_channels", "pitfall", Gathered, VECTORS),
    Architecture("gathered_time", "pitfall", GatheredTime, arguments(floats(2, 11, 9), integers(11, 2))),
    Architecture("reordered_channels", "pitfall", ReorderedChannels, IMAGES),
    Architecture("mirrored_sum", "pitfall", MirroredSum, VECTORS),
    Architecture("rolled_channels", "pitfall", RolledChannels, VECTORS),
    Architecture("repeated_channels", "pitfall", RepeatedChannels, VECTORS),
    Architecture("padded_channels", "pitfall", PaddedChannels, VECTORS),
    Architecture("unfolded_patches", "pitfall", UnfoldedPatches, IMAGES),
    Architecture("chosen_by_condition", "pitfall", ChosenByCondition, VECTORS),
    Architecture("bilinear", "pitfall", Bilinear, VECTORS),
    Architecture("hypernetwork", "pitfall", Hypernetwork, VECTORS),
    Architecture("two_outputs", "pitfall", TwoOutputs, VECTORS),
    Architecture("input_residual", "pitfall", InputResidual, VECTORS),
    Architecture("embedding_bags", "pitfall", EmbeddingBags, arguments(integers(50, 2, 11))),
)
