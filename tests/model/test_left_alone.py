"""What steps leave alone: every step tells it with shares that a hand count gives, and the report keeps it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, Task, compress, prune, quantize
from mirabelle.report import left_by_steps, read_events, read_report
from mirabelle.report.page import card, page


class Residual(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), Residual(6, 6), Residual(6, 6), nn.Linear(6, 3)).eval()


@pytest.fixture
def task() -> Task:
    inputs, targets = torch.randn(30, 4), torch.arange(30) % 3
    return Task(train=(inputs, targets), test=(inputs, targets))


def told(run: Run) -> dict[str, tuple[str, ...]]:
    return {left.what.why: left.what.names for left in left_by_steps(read_events(run.folder))}


def test_pruning_of_weights_tells_what_it_does_not_touch(task: Task, run: Run) -> None:
    model = net()
    nn.init.zeros_(model[1].weight)
    prune.Weights(sparsity=0.5, exclude=("3",))(model, task, run)
    assert told(run) == {"excluded": ("3.weight",), "all its numbers are zero": ("1.weight",)}
    (excluded,) = [left.what for left in left_by_steps(read_events(run.folder)) if left.what.why == "excluded"]
    assert excluded.share_of_bytes == pytest.approx(18 / (24 + 6 + 36 + 6 + 36 + 6 + 18 + 3))
    assert excluded.share_of_macs == pytest.approx(18 / (24 + 36 + 36 + 18))


def test_pruning_of_channels_tells_what_keeps_its_shape(task: Task, run: Run) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    prune.Channels(sparsity=0.5, exclude=("0",))(model, task, run)
    assert told(run) == {"excluded, or cut only together with what is": ("0.weight",)}
    preview = prune.Channels(sparsity=0.5, include=("2.weight",))(model, task, Run(run.folder / "other"))
    assert preview[2].weight.shape == (3, 6)
    assert told(Run(run.folder / "other")) == {"not in `include`": ("0.weight",)}


def test_dropping_of_layers_tells_what_it_keeps(task: Task, run: Run) -> None:
    prune.Layers(sparsity=0.5)(net(), task, run)
    found = told(run)
    assert found["in no residual layer"] == ("0.weight", "3.weight")
    assert len(found["in a layer that is kept"]) == 1


def test_the_report_the_page_and_the_forecast_tell_it(task: Task, tmp_path: Path) -> None:
    steps = [prune.Weights(sparsity=0.5), quantize.Dynamic(exclude=("3",))]
    compress(net(), task, steps, out=tmp_path / "run")
    report = read_report(tmp_path / "run")
    assert [(left.step, left.what.names, left.what.why) for left in report.left] == [
        ("quantize.Dynamic", ("1.weight", "2.weight"), "Residual is a class of its own, whose code may differ"),
        ("quantize.Dynamic", ("3.weight",), "excluded"),
    ]
    assert report.left[0].what.share_of_macs == pytest.approx(72 / (24 + 72 + 18))
    for text in (page(report), card(report)):
        assert "Residual is a class of its own" in text
        assert "63.2 %" in text
    description = steps[1].preview(net(), task, Run(tmp_path / "preview")).description
    assert "left as it is: 3.weight" in " ".join(description)
