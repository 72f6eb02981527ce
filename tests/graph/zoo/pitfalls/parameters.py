"""Parameters and buffers that belong to no layer, or to none that is used."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from zoo.architecture import Architecture

from .common import IMAGES, SEQUENCES, VECTORS, merged_heads, split_heads


class ClassToken(nn.Module):
    """A token and a position table, both parameters of the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(9, 20), nn.Linear(20, 5)
        self.token, self.position = nn.Parameter(torch.zeros(1, 1, 20)), nn.Parameter(torch.zeros(1, 12, 20))
        self.norm = nn.LayerNorm(20)
        self.query, self.key, self.value = (nn.Linear(20, 24) for _ in range(3))
        self.out = nn.Linear(24, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.enter(x)], 1) + self.position
        normed = self.norm(x)
        query, key, value = (split_heads(layer(normed), 4) for layer in (self.query, self.key, self.value))
        x = x + self.out(merged_heads(F.scaled_dot_product_attention(query, key, value)))
        return self.head(x[:, 0])


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(9, 20), nn.Linear(20, 5)
        self.expand, self.project = nn.Linear(20, 32), nn.Linear(32, 20)
        self.scale = nn.Parameter(1e-6 * torch.ones(20))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        return self.head(x + self.scale * self.project(F.gelu(self.expand(x))))


class RelativePositionTable(nn.Module):
    """A bias per head and distance, looked up by a constant index."""

    def __init__(self, length: int = 11) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(9, 20), nn.Linear(20, 5)
        self.query, self.key, self.value = (nn.Linear(20, 24) for _ in range(3))
        self.out = nn.Linear(24, 20)
        self.table = nn.Parameter(torch.zeros(2 * length - 1, 4))
        steps = torch.arange(length)
        self.register_buffer("distance", steps[:, None] - steps[None, :] + length - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        query, key, value = (split_heads(layer(x), 4) for layer in (self.query, self.key, self.value))
        length = x.shape[1]
        bias = self.table[self.distance.view(-1)].view(length, length, -1).permute(2, 0, 1)
        attention = torch.softmax(query @ key.transpose(-2, -1) * 6**-0.5 + bias[None], -1)
        return self.head(x + self.out(merged_heads(attention @ value)))


class UnusedParameters(nn.Module):
    """A layer and a table that no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.head = nn.Linear(9, 16), nn.Linear(16, 5)
        self.never, self.nothing = nn.Linear(16, 12), nn.Parameter(torch.ones(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.fc1(x)))


class BufferOnChannels(nn.Module):
    """A constant per channel, which is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.head = nn.Linear(9, 16), nn.Linear(16, 5)
        self.register_buffer("mask", torch.linspace(0.5, 1.5, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.fc1(x)) * self.mask)


class CachedTensor(nn.Module):
    """The first forward in eval keeps a projected table, all later ones read it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(9, 16), nn.Linear(16, 24), nn.Linear(24, 5)
        self.register_buffer("positions", torch.linspace(-1, 1, 44).view(11, 4))
        self.project = nn.Linear(4, 16)
        self.cached: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = self.project(self.positions) if self.cached is None else self.cached
        if self.cached is None and not torch.compiler.is_compiling():
            self.cached = table.detach()
        return self.head(F.relu(self.fc2(torch.tanh(self.fc1(x) + table))))


class PreluPerChannel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act, self.head = nn.Conv2d(3, 24, 3), nn.PReLU(24), nn.Conv2d(24, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.conv1(x)))


ARCHITECTURES = (
    Architecture("class_token", "pitfall", ClassToken, SEQUENCES),
    Architecture("layer_scale", "pitfall", LayerScale, VECTORS),
    Architecture("relative_position_table", "pitfall", RelativePositionTable, SEQUENCES),
    Architecture("unused_parameters", "pitfall", UnusedParameters, VECTORS),
    Architecture("buffer_on_channels", "pitfall", BufferOnChannels, VECTORS),
    Architecture("cached_tensor", "pitfall", CachedTensor, SEQUENCES),
    Architecture("prelu_per_channel", "pitfall", PreluPerChannel, IMAGES),
)
