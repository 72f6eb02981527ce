"""Weights that are used twice, or made from others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from zoo.architecture import Architecture, arguments, floats, integers

from .common import VECTORS


class TiedAutoencoder(nn.Module):
    """The decoder uses the encoder's weight, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(21, 16)
        self.shift = nn.Parameter(torch.zeros(21))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(torch.tanh(self.encode(x)), self.encode.weight.t(), self.shift)


class TiedLayers(nn.Module):
    """Two layers with one weight: the inputs of one are the inputs of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.first, self.second = nn.Linear(9, 16), nn.Linear(16, 24), nn.Linear(16, 24)
        self.second.weight = self.first.weight
        self.middle, self.head = nn.Linear(24, 16), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(torch.tanh(self.enter(x))))
        return self.head(F.relu(self.second(torch.tanh(self.middle(x)))))


class TiedEmbedding(nn.Module):
    """The output head is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 20)
        self.expand, self.project = nn.Linear(20, 32), nn.Linear(32, 20)
        self.norm = nn.LayerNorm(20)
        self.head = nn.Linear(20, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        return self.head(self.norm(x + self.project(F.gelu(self.expand(x)))))


class CalledManyTimes(nn.Module):
    """One layer, applied three times to its own result."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.step, self.head = nn.Linear(9, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for _ in range(3):
            x = torch.tanh(self.step(x))
        return self.head(x)


class WeightNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = parametrizations.weight_norm(nn.Linear(9, 16))
        self.fc2, self.head = nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.fc2(F.relu(self.fc1(x)))))


class SpectralNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(9, 16), nn.Linear(16, 24)
        self.fc3 = parametrizations.spectral_norm(nn.Linear(24, 20))
        self.head = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))))


class Symmetric(nn.Module):
    """A parametrization: the upper triangle and its mirror image."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.triu() + weight.triu(1).transpose(-1, -2)


class SymmetricWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.mix = nn.Linear(9, 16), nn.Linear(16, 16)
        parametrize.register_parametrization(self.mix, "weight", Symmetric())
        self.fc, self.head = nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.fc(self.mix(torch.tanh(self.enter(x))))))


class LowRankUpdate(nn.Module):
    """A frozen layer plus the product of two thin ones, as in LoRA."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.base, self.head = nn.Linear(9, 16), nn.Linear(16, 24), nn.Linear(24, 5)
        self.down, self.up = nn.Parameter(torch.zeros(8, 16)), nn.Parameter(torch.zeros(24, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.enter(x))
        return self.head(F.relu(F.linear(x, self.base.weight + self.up @ self.down, self.base.bias)))


ARCHITECTURES = (
    Architecture("tied_autoencoder", "pitfall", TiedAutoencoder, arguments(floats(3, 21))),
    Architecture("tied_layers", "pitfall", TiedLayers, VECTORS),
    Architecture("tied_embedding", "pitfall", TiedEmbedding, arguments(integers(50, 2, 11))),
    Architecture("called_many_times", "pitfall", CalledManyTimes, VECTORS),
    Architecture("weight_norm", "pitfall", WeightNorm, VECTORS),
    Architecture("spectral_norm", "pitfall", SpectralNorm, VECTORS),
    Architecture("symmetric_weight", "pitfall", SymmetricWeight, VECTORS),
    Architecture("low_rank_update", "pitfall", LowRankUpdate, VECTORS),
)
