"""quantize.Dynamic chooses by measuring which layers have one range for their whole input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, Task, quantize
from mirabelle.quantize import DynamicLayer, TokenLayer, granularity
from mirabelle.quantize.granularity import layers_per_tensor
from mirabelle.task.batch import Batch


class Net(nn.Module):
    """Two layers with a common input, one behind a token that is fifty times as large as the others, and one without tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.outlier, self.head = (
            nn.Linear(32, 32),
            nn.Linear(32, 32),
            nn.Linear(32, 32),
            nn.Linear(32, 3),
        )
        self.register_buffer("factor", torch.tensor([50.0, *[1.0] * 7])[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.outlier(torch.tanh(self.one(x) + self.other(x)) * self.factor).mean(1))


@pytest.fixture(autouse=True)
def fixed_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(granularity, "_is_faster", lambda *_: True)


def task() -> Task:
    torch.manual_seed(0)
    x, y = torch.rand(60, 8, 32) * 2 - 1, torch.arange(60) % 3
    return Task(train=(x[:40], y[:40]), test=(x[40:], y[40:]))


def kinds(model: nn.Module) -> dict[str, type[nn.Module]]:
    return {name: type(module) for name, module in model.named_children()}


def test_a_layer_with_an_outlier_and_one_without_tokens_keep_a_range_per_token(tmp_path: Path) -> None:
    result = quantize.Dynamic()(Net(), task(), Run(tmp_path))
    assert kinds(result) == {"one": DynamicLayer, "other": DynamicLayer, "outlier": TokenLayer, "head": TokenLayer}


@torch.no_grad()
def test_the_errors_are_those_of_the_layers() -> None:
    torch.manual_seed(0)
    dense, x = nn.Linear(32, 16), torch.randn(4, 8, 32)
    rounded = granularity._rounded_weight(dense, 8)
    due = [float((kind.quantized(dense, 8)(x) - dense(x)).square().sum()) for kind in (TokenLayer, DynamicLayer)]
    found = granularity._errors(x, dense.weight, rounded).tolist()
    assert found == pytest.approx(due, rel=1e-3)


def test_the_choice_is_a_decision_that_a_resumed_run_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, data = Run(tmp_path), task()
    first = quantize.Dynamic()(Net(), data, run)
    monkeypatch.setattr(granularity, "_is_faster", lambda *_: False)
    assert kinds(quantize.Dynamic()(Net(), data, run)) == kinds(first)
    assert kinds(quantize.Dynamic()(Net(), data, Run(tmp_path / "other")))["one"] is TokenLayer


def test_the_preview_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(granularity, "layers_per_tensor", lambda *_: pytest.fail("measured"))
    preview = quantize.Dynamic().preview(Net(), task(), Run(tmp_path))
    assert any("by measuring on 64 samples" in note for note in preview.description)


def test_values_that_are_not_finite_keep_a_range_per_token() -> None:
    net = nn.Sequential(nn.Linear(32, 32))
    batch = Batch(torch.full((2, 8, 32), torch.inf), torch.zeros(2))
    assert layers_per_tensor(net, {"0": net[0]}, 8, [batch]) == []


def test_the_times_are_those_of_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert granularity._is_faster(nn.Linear(384, 384), 8, (32, 32, 384)) in (True, False)
