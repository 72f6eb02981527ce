"""What is told of models before the results: whether samples of a batch change each other's outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Task, compress, prune
from mirabelle.job.notes import mixes_samples
from mirabelle.report import read_events


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x - x.mean(0))


class Drawing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] + torch.rand(3)


class AllPairs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ x.T


def _task() -> Task:
    torch.manual_seed(0)
    inputs, targets = torch.randn(40, 6), torch.arange(40) % 3
    return Task(train=(inputs, targets), test=(inputs, targets))


ALONE = {
    "norms and dropout": nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)),
    "random numbers": Drawing(),
    "outputs for pairs": AllPairs(),
}


@pytest.mark.parametrize("name", ALONE)
def test_models_that_take_samples_one_by_one_are_not_suspected(name: str) -> None:
    assert not mixes_samples(ALONE[name], _task())


def test_a_model_that_mixes_the_samples_of_a_batch_is_told(tmp_path: Path) -> None:
    model = Centred().train()
    assert mixes_samples(model, _task())
    assert model.training
    compress(model, _task(), [prune.Weights(sparsity=0.3)], out=tmp_path / "run")
    told = [event["text"] for event in read_events(tmp_path / "run") if "text" in event]
    assert any("of the model for a sample depend on the other samples of its batch" in text for text in told), told
