"""A global ranking leaves a floor in every layer, and what a pruning leaves without an effect is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, Task, Training, prune


def net() -> nn.Sequential:
    """All passes through a middle layer whose weights are small."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 3))
    with torch.no_grad():
        model[2].weight *= 1e-3
    return model


@pytest.fixture
def points() -> Task:
    torch.manual_seed(1)
    x = torch.randn(80, 4)
    return Task(train=(x, torch.arange(80) % 3), test=(x, torch.arange(80) % 3))


def told(step: Any, model: nn.Module, task: Task, folder: Path) -> tuple[nn.Module, list[str]]:
    """The result of a step, and its warnings."""
    texts: list[str] = []
    run = Run(folder, callbacks=[lambda event: texts.append(event["text"]) if event["event"] == "warning" else None])
    return step(model, task, run), texts


def kept(model: nn.Module) -> list[int]:
    return [int(layer.weight.count_nonzero()) for layer in model.modules() if isinstance(layer, nn.Linear)]


def test_a_global_ranking_leaves_a_tenth_of_an_equal_share_by_default(points: Task, tmp_path: Path) -> None:
    """80, 400 and 60 weights, 432 of 540 go: the middle layer keeps 0.1 · 0.2 · 400 = 8 instead of none."""
    model, texts = told(prune.Weights(sparsity=0.8, scope="global"), net(), points, tmp_path)
    assert kept(model)[1] == 8
    assert sum(kept(model)) == 540 - 432
    assert texts == []
    with torch.no_grad():
        assert float(model(points.test.first(40).inputs).std(0).min()) > 0


def test_without_a_floor_the_layer_that_dies_is_named(points: Task, tmp_path: Path) -> None:
    model, texts = told(prune.Weights(sparsity=0.8, scope="global", floor=0.0), net(), points, tmp_path)
    assert kept(model)[1] == 0
    (text,) = texts
    assert text.startswith(
        "the outputs of 2, 4, the model are the same for all of 64 samples, and were not before: prune less there"
    )


@pytest.mark.parametrize("settings", [{"threshold": 1e-3}, {"schedule": "cubic", "threshold": 1e-3}])
def test_a_threshold_that_empties_a_layer_is_told_after_a_training_too(
    settings: dict[str, Any], points: Task, tmp_path: Path
) -> None:
    step = prune.Weights(**settings, train=Training(epochs=1, lr=1e-6))
    _, texts = told(step, net(), points, tmp_path)
    assert [text for text in texts if text.startswith("the outputs of 2, 4, the model are the same")]


def test_an_output_that_is_the_same_for_every_sample_is_named(points: Task, tmp_path: Path) -> None:
    model = net()
    with torch.no_grad():
        model[2].weight *= 1e3
        model[4].weight[1] *= 1e-3
    _, texts = told(prune.Weights(threshold=1e-3, include=("4.weight",)), model, points, tmp_path)
    (text,) = texts
    assert text.startswith("output 1 is the same for all of 64 samples, and was not before")


def test_groups_of_channels_keep_a_floor_in_a_global_ranking(points: Task, tmp_path: Path) -> None:
    """Of 40 units 20 go. One unit of the first layer stands out, so that an equal ranking leaves it alone there."""

    def uneven() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 3))
        with torch.no_grad():
            for layer in (model[0], model[2], model[4]):
                layer.weight.fill_(1.0)
                layer.bias.fill_(1.0)
            model[0].weight[3:] = 0.01
            model[2].weight[:, 3:] = 0.01
        return model

    step = {"sparsity": 0.5, "scope": "global"}
    widths = {
        floor: prune.Channels(**step, floor=floor)(uneven(), points, Run(tmp_path))[0].out_features for floor in (0.0, 0.4)
    }
    assert widths[0.0] == 3
    assert widths[0.4] == 4, "⌈0.4 · 0.5 · 20⌉"


def test_a_layer_that_was_constant_before_is_not_told(points: Task, tmp_path: Path) -> None:
    model = net()
    with torch.no_grad():
        model[2].weight.zero_()
    _, texts = told(prune.Weights(sparsity=0.5), model, points, tmp_path)
    assert texts == []


def test_channels_that_a_relu_leaves_dead_are_told(points: Task, tmp_path: Path) -> None:
    """The two units of highest score are never above zero."""

    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(4, 8), nn.Linear(8, 3)
            with torch.no_grad():
                self.enter.weight[:2] *= 10
                self.enter.bias[:2] = -1e4

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.enter(x).relu())

    _, texts = told(prune.Channels(sparsity=0.75), Dead(), points, tmp_path)
    assert [text.partition(" are the same")[0] for text in texts] == ["the outputs of leave, the model"]
