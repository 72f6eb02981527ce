"""Heads that share keys and values, turned queries and keys, experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from zoo.architecture import Architecture

from .common import SEQUENCES, VECTORS, merged_heads, split_heads


class GroupedQueries(nn.Module):
    """Four query heads share two heads of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(9, 20), nn.Linear(20, 5)
        self.query, self.key, self.value = nn.Linear(20, 24), nn.Linear(20, 12), nn.Linear(20, 12)
        self.out = nn.Linear(24, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        query = split_heads(self.query(x), 4)
        key, value = (split_heads(layer(x), 2) for layer in (self.key, self.value))
        batch, heads, length, depth = key.shape
        key = key[:, :, None].expand(batch, heads, 2, length, depth).reshape(batch, 2 * heads, length, depth)
        value = value[:, :, None].expand(batch, heads, 2, length, depth).reshape(batch, 2 * heads, length, depth)
        return self.head(x + self.out(merged_heads(F.scaled_dot_product_attention(query, key, value))))


class BuiltInGroupedQueries(nn.Module):
    """The same, left to the attention operator."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(9, 20), nn.Linear(20, 5)
        self.query, self.key, self.value = nn.Linear(20, 24), nn.Linear(20, 12), nn.Linear(20, 12)
        self.out = nn.Linear(24, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        query = split_heads(self.query(x), 4)
        key, value = (split_heads(layer(x), 2) for layer in (self.key, self.value))
        attended = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return self.head(x + self.out(merged_heads(attended)))


class MultiQuery(nn.Module):
    """Four query heads share one head of keys and values, by broadcasting."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(9, 20), nn.Linear(20, 5)
        self.query, self.key, self.value = nn.Linear(20, 24), nn.Linear(20, 6), nn.Linear(20, 6)
        self.out = nn.Linear(24, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        query, key, value = split_heads(self.query(x), 4), self.key(x)[:, None], self.value(x)[:, None]
        attention = torch.softmax(query @ key.transpose(-2, -1) * 6**-0.5, -1)
        return self.head(x + self.out(merged_heads(attention @ value)))


class RotaryHalves(nn.Module):
    """Rotary embedding that turns dimension i together with i + depth / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(9, 20), nn.Linear(20, 5)
        self.query, self.key, self.value = (nn.Linear(20, 24) for _ in range(3))
        self.out = nn.Linear(24, 20)
        self.register_buffer("frequencies", 10.0 ** -(torch.arange(3) / 3), persistent=False)

    def rotated(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(x.shape[2]).to(x.dtype)[:, None] * self.frequencies
        angles = torch.cat([angles, angles], -1)
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        query, key, value = (split_heads(layer(x), 4) for layer in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(self.rotated(query), self.rotated(key), value, is_causal=True)
        return self.head(x + self.out(merged_heads(attended)))


class RotaryPairs(nn.Module):
    """Rotary embedding that turns neighbours, and only the first four of six dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(9, 20), nn.Linear(20, 5)
        self.query, self.key, self.value = (nn.Linear(20, 24) for _ in range(3))
        self.out = nn.Linear(24, 20)
        self.register_buffer("frequencies", 10.0 ** -(torch.arange(2) / 2), persistent=False)

    def rotated(self, x: torch.Tensor) -> torch.Tensor:
        turned, passed = x[..., :4], x[..., 4:]
        angles = (torch.arange(x.shape[2]).to(x.dtype)[:, None] * self.frequencies).repeat_interleave(2, -1)
        swapped = torch.stack([-turned[..., 1::2], turned[..., ::2]], -1).flatten(-2)
        return torch.cat([turned * angles.cos() + swapped * angles.sin(), passed], -1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        query, key, value = (split_heads(layer(x), 4) for layer in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(self.rotated(query), self.rotated(key), value)
        return self.head(x + self.out(merged_heads(attended)))


class DenseExperts(nn.Module):
    """Every expert sees every input; a softmax over the experts weighs their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(9, 20), nn.Linear(20, 5)
        self.gate = nn.Linear(20, 3)
        self.expand = nn.ModuleList(nn.Linear(20, width) for width in (16, 24, 32))
        self.project = nn.ModuleList(nn.Linear(width, 20) for width in (16, 24, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        weights = torch.softmax(self.gate(x), -1)
        total = torch.zeros_like(x)
        for i, (expand, project) in enumerate(zip(self.expand, self.project, strict=True)):
            total = total + weights[:, i : i + 1] * project(F.gelu(expand(x)))
        return self.head(x + total)


class StackedExperts(nn.Module):
    """All experts lie in one tensor, with a dimension of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(9, 20), nn.Linear(20, 5)
        self.gate = nn.Linear(20, 6)
        self.expand, self.project = nn.Parameter(torch.zeros(6, 20, 32)), nn.Parameter(torch.zeros(6, 32, 20))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        weights = torch.softmax(self.gate(x), -1).transpose(0, 1)[:, :, None]
        outputs = torch.bmm(F.gelu(torch.bmm(x.expand(6, -1, -1), self.expand)), self.project)
        return self.head(x + (weights * outputs).sum(0))


ARCHITECTURES = (
    Architecture("grouped_queries", "pitfall", GroupedQueries, SEQUENCES),
    Architecture("built_in_grouped_queries", "pitfall", BuiltInGroupedQueries, SEQUENCES),
    Architecture("multi_query", "pitfall", MultiQuery, SEQUENCES),
    Architecture("rotary_halves", "pitfall", RotaryHalves, SEQUENCES),
    Architecture("rotary_pairs", "pitfall", RotaryPairs, SEQUENCES),
    Architecture("dense_experts", "pitfall", DenseExperts, VECTORS),
    Architecture("stacked_experts", "pitfall", StackedExperts, VECTORS),
)
