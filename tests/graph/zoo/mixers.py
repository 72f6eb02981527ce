"""Mixers, and attention written by hand or taken from torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .architecture import Architecture, arguments, floats, integers


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens_in, self.tokens_out = nn.Linear(tokens, 28), nn.Linear(28, tokens)
        self.channels_in, self.channels_out = nn.Linear(width, 32), nn.Linear(32, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.tokens_out(F.gelu(self.tokens_in(self.norm1(x).transpose(1, 2))))
        x = x + mixed.transpose(1, 2)
        return x + self.channels_out(F.gelu(self.channels_in(self.norm2(x))))


class MlpMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, 4)
        self.blocks = nn.Sequential(MixerBlock(5 * 7, 24), MixerBlock(5 * 7, 24))
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


class ConvMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 3, 3)
        self.norm = nn.BatchNorm2d(24)
        self.depthwise = nn.ModuleList(nn.Conv2d(24, 24, 5, padding=2, groups=24) for _ in range(2))
        self.pointwise = nn.ModuleList(nn.Conv2d(24, 24, 1) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(24) for _ in range(4))
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(F.gelu(self.patch(x)))
        for i in range(2):
            x = x + self.norms[2 * i](F.gelu(self.depthwise[i](x)))
            x = self.norms[2 * i + 1](F.gelu(self.pointwise[i](x)))
        return self.head(x.mean((2, 3)))


class GatedMlp(nn.Module):
    """gMLP: half of the hidden units gate the other half after mixing over time."""

    def __init__(self, length: int = 11) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 20)
        self.norm = nn.LayerNorm(20)
        self.expand, self.project = nn.Linear(20, 48), nn.Linear(24, 20)
        self.gate_norm = nn.LayerNorm(24)
        self.mix = nn.Conv1d(length, length, 1)
        self.head = nn.Linear(20, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        value, gate = F.gelu(self.expand(self.norm(x))).chunk(2, -1)
        x = x + self.project(value * self.mix(self.gate_norm(gate)))
        return self.head(x.mean(1))


class EinsumAttention(nn.Module):
    """Multi-head attention whose weights keep the heads as a dimension of their own."""

    def __init__(self, width: int = 20, heads: int = 4, depth: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.query = nn.Parameter(torch.randn(heads, width, depth))
        self.key = nn.Parameter(torch.randn(heads, width, depth))
        self.value = nn.Parameter(torch.randn(heads, width, depth))
        self.out = nn.Parameter(torch.randn(heads, depth, width))
        self.head = nn.Linear(width, 5)
        self.scale = depth**-0.5

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        query = torch.einsum("btc,hcd->bhtd", x, self.query)
        key = torch.einsum("btc,hcd->bhtd", x, self.key)
        value = torch.einsum("btc,hcd->bhtd", x, self.value)
        attention = torch.softmax(torch.einsum("bhqd,bhkd->bhqk", query, key) * self.scale, -1)
        x = x + torch.einsum("bhqk,bhkd,hdc->bqc", attention, value, self.out)
        return self.head(x)


class TorchAttention(nn.Module):
    """nn.MultiheadAttention, time first, so that it is traced as single operators."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        self.attention = nn.MultiheadAttention(24, 4)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens).transpose(0, 1)
        attended, _ = self.attention(x, x, x)
        return self.head(self.norm(x + attended)).transpose(0, 1)


class TorchEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        layer = nn.TransformerEncoderLayer(24, 4, 40, activation="gelu", norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(24), enable_nested_tensor=False)
        self.head = nn.Linear(24, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(tokens).transpose(0, 1)).mean(0))


class TorchDecoder(nn.Module):
    """Self-attention under a causal mask, and attention to a memory of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        self.memory = nn.Linear(9, 24)
        self.layer = nn.TransformerDecoderLayer(24, 4, 40)
        self.head = nn.Linear(24, 50)

    def forward(self, tokens: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens).transpose(0, 1)
        mask = torch.full((x.shape[0], x.shape[0]), float("-inf"), dtype=x.dtype).triu(1)
        return self.head(self.layer(x, self.memory(memory).transpose(0, 1), tgt_mask=mask)).transpose(0, 1)


class LinearAttention(nn.Module):
    """Softmax of the keys over time, keys and values multiplied first."""

    def __init__(self, width: int = 20, heads: int = 4, depth: int = 6) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(50, width)
        self.query, self.key, self.value = (nn.Linear(width, heads * depth) for _ in range(3))
        self.out = nn.Linear(heads * depth, width)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        query, value = torch.sigmoid(self.split(self.query(x))), self.split(self.value(x))
        key = torch.softmax(self.split(self.key(x)), -2)
        out = query @ (key.transpose(-2, -1) @ value)
        return self.out(out.transpose(1, 2).flatten(2))


TOKENS = arguments(integers(50, 2, 11))

ARCHITECTURES = (
    Architecture("mlp_mixer", "mixer", MlpMixer, arguments(floats(2, 3, 20, 28))),
    Architecture("conv_mixer", "mixer", ConvMixer, arguments(floats(2, 3, 21, 27))),
    Architecture("gated_mlp", "mixer", GatedMlp, TOKENS),
    Architecture("einsum_attention", "attention", EinsumAttention, TOKENS),
    Architecture("torch_attention", "attention", TorchAttention, TOKENS),
    Architecture("torch_encoder", "attention", TorchEncoder, TOKENS),
    Architecture("torch_decoder", "attention", TorchDecoder, arguments(integers(50, 2, 11), floats(2, 7, 9))),
    Architecture("linear_attention", "attention", LinearAttention, TOKENS),
)
