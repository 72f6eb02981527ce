"""Ratings in the form of MovieLens: neural collaborative filtering, judged by what each user watched last."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mirabelle import Task
from mirabelle.errors import UserError

USERS, ITEMS = 943, 1682
CANDIDATES = 100  # the right one among 99 that the user has not rated


class NeuMF(nn.Module):
    """Scores of candidates: a product of factors beside a perceptron over others (He et al. 2017, arXiv:1708.05031).

    users (batch,), items (batch, candidates) → (batch, candidates)
    """

    def __init__(self, factors: int) -> None:
        super().__init__()
        self.user_factors, self.item_factors = nn.Embedding(USERS, factors), nn.Embedding(ITEMS, factors)
        self.user_inputs, self.item_inputs = nn.Embedding(USERS, factors), nn.Embedding(ITEMS, factors)
        for table in (self.user_factors, self.item_factors, self.user_inputs, self.item_inputs):
            nn.init.normal_(table.weight, std=0.1)
        self.perceptron = nn.Sequential(
            nn.Linear(2 * factors, factors), nn.ReLU(), nn.Dropout(0.2), nn.Linear(factors, factors // 2), nn.ReLU()
        )
        self.dropout, self.score = nn.Dropout(0.2), nn.Linear(factors + factors // 2, 1)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        product = self.user_factors(users).unsqueeze(1) * self.item_factors(items)
        inputs = self.item_inputs(items)
        both = torch.cat([self.user_inputs(users).unsqueeze(1).expand_as(inputs), inputs], -1)
        scores: Tensor = self.score(self.dropout(torch.cat([product, self.perceptron(both)], -1))).squeeze(-1)
        return scores


def net() -> NeuMF:
    return NeuMF(64)


def small() -> NeuMF:
    return NeuMF(16)


def ratings(data_dir: Path, file: str = "ml-100k/u.data") -> Task:
    """The last item of each user to test, the one before to validate, all others to train; each among 99 never rated."""
    path = data_dir / file
    if not path.is_file():
        raise UserError("E130", f"no ratings at {path}", "unpack ml-100k.zip there, or benchmarks/ratings.py makes some")
    user, item, when = np.loadtxt(path, dtype=np.int64, usecols=(0, 1, 3), unpack=True)
    order = np.lexsort((when, user))
    user, item = user[order] - 1, item[order] - 1
    if user.max() >= USERS or item.max() >= ITEMS:
        raise UserError("E131", f"{path} has more than {USERS} users or {ITEMS} items", "raise USERS and ITEMS")
    rated = np.zeros((USERS, ITEMS), bool)
    rated[user, item] = True
    from_the_end = np.searchsorted(user, user, side="right") - 1 - np.arange(len(user))
    generator = np.random.default_rng(0)
    shown = np.concatenate([_beside(item[user == one], ~rated[one], generator) for one in np.unique(user)])
    place = generator.integers(CANDIDATES, size=len(user))
    rows = np.arange(len(user))
    shown[rows, 0], shown[rows, place] = shown[rows, place], shown[rows, 0]

    def part(chosen: np.ndarray) -> tuple[tuple[Tensor, Tensor], Tensor]:
        return (torch.from_numpy(user[chosen]), torch.from_numpy(shown[chosen])), torch.from_numpy(place[chosen])

    return Task(
        train=part(from_the_end > 1),
        validation=part(from_the_end == 1),
        test=part(from_the_end == 0),
        metric="hit_rate@10",
        extra_metrics=("ndcg@10",),
        name="ratings",
    )


def _beside(items: np.ndarray, free: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Each item of a user first, then different ones that the user has not rated, (items, candidates)."""
    others = np.flatnonzero(free)
    drawn = generator.random((len(items), len(others))).argpartition(CANDIDATES - 1, axis=1)[:, : CANDIDATES - 1]
    return np.concatenate([items[:, None], others[drawn]], 1)
