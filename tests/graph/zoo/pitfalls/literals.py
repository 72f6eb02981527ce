"""Sizes that are written into the code, and that no longer hold after the cut."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from zoo.architecture import Architecture

from .common import IMAGES, SEQUENCES, VECTORS, merged_heads, split_heads


class ViewConstants(nn.Module):
    """Heads, depth and width are literals; the residual stream passes untouched."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(9, 20), nn.Linear(20, 5)
        self.query, self.key, self.value = (nn.Linear(20, 24) for _ in range(3))
        self.out = nn.Linear(24, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        query = self.query(x).view(-1, 11, 4, 6).permute(0, 2, 1, 3)
        key = self.key(x).view(-1, 11, 4, 6).permute(0, 2, 1, 3)
        value = self.value(x).view(-1, 11, 4, 6).permute(0, 2, 1, 3)
        out = F.scaled_dot_product_attention(query, key, value)
        return self.head(x + self.out(out.permute(0, 2, 1, 3).contiguous().view(-1, 11, 24)))


class AttentionScaleInPython(nn.Module):
    """The scale is the width of a head as Python saw it; it must stay what it was when that width is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(9, 20), nn.Linear(20, 5)
        self.query, self.key, self.value = (nn.Linear(20, 24) for _ in range(3))
        self.out = nn.Linear(24, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        query, key, value = (split_heads(layer(x), 4) for layer in (self.query, self.key, self.value))
        attention = torch.softmax(query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5, -1)
        return self.head(x + self.out(merged_heads(attention @ value)))


class LiteralWidths(nn.Module):
    """Channels and pixels are joined, split and broadcast by numbers that only fit the dense network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.reshape(F.relu(self.conv1(x)), (2, 24, 143))
        x = x + x.mean(2).reshape(2, 24, 1).expand(2, 24, 143)
        x = self.conv2(x.reshape(2, 24, 11, 13))
        return self.head(x.reshape(2, 16, 11 * 13).sum(2).reshape(-1, 16))


class TwoFactorings(nn.Module):
    """24 channels read as (4, 6) for one table and as (6, 4) for another."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(9, 24), nn.Linear(24, 16)
        self.table4, self.table6 = nn.Parameter(torch.ones(4, 1)), nn.Parameter(torch.ones(6, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.fc1(x))
        coarse = (x.view(-1, 4, 6) * self.table4).flatten(1)
        fine = (x.view(-1, 6, 4) * self.table6).flatten(1)
        return self.head(F.relu(self.fc2(coarse + fine)))


class NestedFactorings(nn.Module):
    """24 channels read as (4, 6) and as (2, 12): the second is coarser, both fit one factoring (2, 2, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(9, 24), nn.Linear(24, 16)
        self.table4, self.table2 = nn.Parameter(torch.ones(4, 1)), nn.Parameter(torch.ones(2, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.fc1(x))
        fine = (x.view(-1, 4, 6) * self.table4).flatten(1)
        coarse = (x.view(-1, 2, 12) * self.table2).flatten(1)
        return self.head(F.relu(self.fc2(fine + coarse)))


class FlattenIntoLinear(nn.Module):
    """One channel is a run of columns of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3)
        self.fc, self.head = nn.Linear(12 * 4 * 5, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.fc(F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1))))


class FlattenChannelsLast(nn.Module):
    """One channel is every twelfth column of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3)
        self.fc, self.head = nn.Linear(12 * 4 * 5, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2).permute(0, 2, 3, 1)
        return self.head(F.relu(self.fc(x.reshape(x.shape[0], -1))))


ARCHITECTURES = (
    Architecture("view_constants", "pitfall", ViewConstants, SEQUENCES),
    Architecture("attention_scale_in_python", "pitfall", AttentionScaleInPython, SEQUENCES),
    Architecture("literal_widths", "pitfall", LiteralWidths, IMAGES),
    Architecture("two_factorings", "pitfall", TwoFactorings, VECTORS),
    Architecture("nested_factorings", "pitfall", NestedFactorings, VECTORS),
    Architecture("flatten_into_linear", "pitfall", FlattenIntoLinear, IMAGES),
    Architecture("flatten_channels_last", "pitfall", FlattenChannelsLast, IMAGES),
)
