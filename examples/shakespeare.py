"""Shakespeare, character by character: a small causal transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHARACTERS, WINDOW, HEAD = 65, 128, 32  # of the text, seen at once, numbers a head


class Block(nn.Module):
    """Attention to what came before, and a perceptron, each added to what goes through."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.attention_norm, self.perceptron_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        query, key, value = (
            layer(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        read = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=HEAD**-0.5)
        x = x + self.out(read.transpose(1, 2).flatten(2))
        return x + self.perceptron(self.perceptron_norm(x))


class Writer(nn.Module):
    """(batch, characters) to scores of what follows each of them, (batch, characters, 65)."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.symbols, self.places = nn.Embedding(CHARACTERS, width), nn.Embedding(WINDOW, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm, self.scores = nn.LayerNorm(width), nn.Linear(width, CHARACTERS)
        for table in (self.symbols, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, symbols: Tensor) -> Tensor:
        x = self.symbols(symbols) + self.places(torch.arange(symbols.shape[1]))
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.scores(self.norm(x))
        return scores


def writer(width: int = 192, blocks: int = 4) -> Writer:
    return Writer(width, blocks)
