"""Previews rank by a few samples, say so, and tell how much longer the step takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mirabelle import Run, Task, prune
from mirabelle.prune.previewing import PREVIEWED
from mirabelle.scores import Taylor
from mirabelle.step import Step


class Residual(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all batches that the model gets in training data."""
    sizes: list[int] = []
    forward = nn.Sequential.forward

    def look(self: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(nn.Sequential, "forward", look)
    return sizes


@pytest.mark.parametrize(
    "step",
    [
        lambda samples: prune.Layers(sparsity=0.5, samples=samples),
        lambda samples: prune.Channels(sparsity=0.5, score=Taylor(samples=samples)),
    ],
)
def test_a_preview_ranks_by_few_samples(step: Callable[[int], Step], seen: list[int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 8), Residual(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)), nn.Linear(8, 3)).eval()
    x, y = torch.randn(600, 6), torch.arange(600) % 3
    task = Task(train=(x, y), test=(x[:20], y[:20]))
    few, many = (step(count).preview(model, task, Run(tmp_path)) for count in (PREVIEWED, 500))
    assert max(seen) <= PREVIEWED
    assert few.more_seconds == 0 < many.more_seconds
    assert not any("ranked here by" in sentence for sentence in few.description)
    assert f"ranked here by {PREVIEWED} of its 500 samples" in many.description[-1]
    assert [name for name, _ in few.model.named_parameters()] == [name for name, _ in many.model.named_parameters()]
