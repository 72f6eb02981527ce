"""Layers that hold several things at once, and tensors that are split and joined again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from zoo.architecture import Architecture

from .common import IMAGES, SEQUENCES, VECTORS, merged_heads, split_heads


class ChunkedQkv(nn.Module):
    """Query, key and value are thirds of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(9, 20), nn.Linear(20, 5)
        self.qkv, self.out = nn.Linear(20, 72), nn.Linear(24, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        query, key, value = (split_heads(part, 4) for part in self.qkv(x).chunk(3, -1))
        return self.head(x + self.out(merged_heads(F.scaled_dot_product_attention(query, key, value))))


class UnboundQkv(nn.Module):
    """Query, key and value are read through a five-dimensional view."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(9, 20), nn.Linear(20, 5)
        self.qkv, self.out = nn.Linear(20, 72), nn.Linear(24, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        qkv = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, 4, 6).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        return self.head(x + self.out(merged_heads(F.scaled_dot_product_attention(query, key, value))))


class InterleavedQkv(nn.Module):
    """Each head holds its own query, key and value, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(9, 20), nn.Linear(20, 5)
        self.qkv, self.out = nn.Linear(20, 72), nn.Linear(24, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        query, key, value = self.qkv(x).unflatten(-1, (4, 18)).transpose(1, 2).split(6, -1)
        return self.head(x + self.out(merged_heads(F.scaled_dot_product_attention(query, key, value))))


class CatOfCat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 12, 3), nn.Conv2d(3, 16, 3)
        self.inner, self.head = nn.Conv2d(20, 24, 1), nn.Conv2d(36, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.cat([self.conv1(x), self.conv2(x)], 1)
        second = torch.cat([first, self.conv3(x)], 1)
        return self.head(F.relu(second)).mean((2, 3)) + self.inner(F.relu(first)).sum((1, 2, 3), keepdim=False)[:, None]


class UnevenSplit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(9, 30)
        self.left, self.middle, self.right = nn.Linear(8, 5), nn.Linear(12, 5), nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, middle, right = torch.split(F.relu(self.fc(x)), [8, 12, 10], -1)
        return self.left(left) + self.middle(middle) + self.right(right)


class SharedSplit(nn.Module):
    """A part is cut out across the border between two producers, and added to a third."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(9, 12), nn.Linear(9, 16), nn.Linear(9, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([self.first(x), self.second(x)], -1)
        return self.head(torch.tanh(both[..., 8:18] + self.third(x)))


class GatedLinearUnit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out, self.head = nn.Linear(9, 48), nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.out(F.glu(self.fc(x), -1))))


class StackedBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(9, 16) for _ in range(3))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.stack([torch.tanh(branch(x)) for branch in self.branches], 1).amax(1))


class BorrowedChannels(nn.Module):
    """Some channels are overwritten by shifted ones, in place, as in temporal shift modules."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(9, 16), nn.Linear(16, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.fc1(x))
        out = torch.zeros_like(x)
        out[:, :-1, :4] = x[:, 1:, :4]
        out[:, 1:, 4:8] = x[:, :-1, 4:8]
        out[:, :, 8:] = x[:, :, 8:]
        return self.head(F.relu(self.fc2(out)))


ARCHITECTURES = (
    Architecture("chunked_qkv", "pitfall", ChunkedQkv, SEQUENCES),
    Architecture("unbound_qkv", "pitfall", UnboundQkv, SEQUENCES),
    Architecture("interleaved_qkv", "pitfall", InterleavedQkv, SEQUENCES),
    Architecture("cat_of_cat", "pitfall", CatOfCat, IMAGES),
    Architecture("uneven_split", "pitfall", UnevenSplit, VECTORS),
    Architecture("shared_split", "pitfall", SharedSplit, VECTORS),
    Architecture("gated_linear_unit", "pitfall", GatedLinearUnit, VECTORS),
    Architecture("stacked_branches", "pitfall", StackedBranches, VECTORS),
    Architecture("borrowed_channels", "pitfall", BorrowedChannels, SEQUENCES),
)
