"""A small transformer that treats the rows of an image as tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RowAttention(nn.Module):
    """Multi-head self-attention that returns (states, attention probabilities of shape (batch, heads, rows, rows))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, rows, _ = x.shape
        query, key, value = (
            layer(x).reshape(batch, rows, self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        weights = torch.softmax(query @ key.transpose(2, 3) / query.shape[-1] ** 0.5, dim=-1)
        states: Tensor = self.out((weights @ value).transpose(1, 2).reshape(batch, rows, -1))
        return states, weights


class RowLayer(nn.Module):
    """A pre-norm transformer layer: attention and a feed-forward network, each with layer norm and a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), RowAttention(width, heads)
        self.norm2, self.mlp = (
            nn.LayerNorm(width),
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))[0]
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class RowTransformer(nn.Module):
    """A transformer classifier that treats the rows of an image as tokens; it averages the tokens before the last linear layer.

    Args:
        side: height and width of the images, (batch, 1, side, side).
        width: dimension of a token.
        layers: number of transformer layers.
        heads: number of attention heads in each layer.
        classes: number of outputs.

    Source: Vaswani et al. 2017, arXiv:1706.03762; pre-norm layers: Xiong et al. 2020, arXiv:2002.04745.
    """

    def __init__(self, side: int, width: int, layers: int, heads: int, *, classes: int = 10) -> None:
        super().__init__()
        self.enter, self.places = nn.Linear(side, width), nn.Parameter(0.02 * torch.randn(side, width))
        self.layers = nn.ModuleList(RowLayer(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.squeeze(1)) + self.places
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(self.norm(x).mean(1))
        return out
