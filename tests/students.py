"""Pairs of students and teachers in which every term of distillation finds what it looks at."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mirabelle import Task
from mirabelle.distill.head import with_head_of
from mirabelle.objectives import AttentionMaps, HiddenStates, Rate, SimKD, Term, TokenRelations
from mirabelle.quantize.rounded_layer import rounded_layers


class Convolutional(nn.Module):
    """Maps of 8 × 8 and 4 × 4 places, an embedding, a linear head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.coarse = nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.coarse(self.pool(self.fine(x))).mean((2, 3)))
        return out


class Attention(nn.Module):
    """Gives its weights beside its states."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        weights = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)
        return (weights @ value).transpose(1, 2).flatten(2), weights


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.norm = Attention(width, heads), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.attention(x)[0])
        return out


class Transformer(nn.Module):
    """Reads an image row by row."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(8, width), nn.Linear(width, 3)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.squeeze(1))
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(x.mean(1))
        return out


def pair_for(kind: type[Term], images: Task, *, equal: bool = False) -> tuple[nn.Module, Task]:
    """A student in which a term finds its layers, and the task with its teacher; with `equal` a copy of it."""
    torch.manual_seed(1)
    tokens = kind in {HiddenStates, AttentionMaps, TokenRelations}
    teacher = Transformer(24, 4, 4) if tokens else Convolutional(8)
    torch.manual_seed(0)
    small = copy.deepcopy(teacher) if equal else Transformer(12, 2, 2) if tokens else Convolutional(4)
    if kind is SimKD and not equal:
        small = with_head_of(small, teacher, images.example())
    if kind is Rate:
        small.head = rounded_layers([small.head])[0]  # type: ignore[list-item]  # of Convolutional
    return small, images.with_teacher(teacher)
