"""A model that is not better than the same answer for every input: told, no gain, no teacher, no goal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier
from torch import nn

from mirabelle import Goal, Task, Training, compress, prune
from mirabelle.job import compare
from mirabelle.job.dry_run import JobPlan
from mirabelle.job.forecast import forecast
from mirabelle.job.learned import standing
from mirabelle.recipe import Recipe
from mirabelle.task.constant import best_constant
from mirabelle.training import default_objective

TRAIN = Training(epochs=6, batch_size=32, lr=0.02, precision="float32")


class Fixed(nn.Module):
    """The same outputs for every input; trains as a bias."""

    def __init__(self, outputs: torch.Tensor) -> None:
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outputs.expand(len(x), *self.outputs.shape) + 0.0 * x.flatten(1).sum(1).reshape(
            -1, *[1] * self.outputs.dim()
        )


def task_of(targets: torch.Tensor, **settings: Any) -> Task:
    x = torch.randn(len(targets), 4, generator=torch.Generator().manual_seed(0))
    half = len(targets) // 2
    return Task(
        train=(x[:half], targets[:half]), validation=(x[half:], targets[half:]), test=(x[half:], targets[half:]), **settings
    )


Y = torch.arange(400) % 10
CASES = {
    "classes": (Y % 3, torch.zeros(3), {}),
    "imbalanced": ((Y == 0).long(), torch.tensor([2.0, 0.0]), {}),
    "imbalanced, roc_auc": ((Y == 0).long(), torch.tensor([2.0, 0.0]), {"metric": "roc_auc"}),
    "imbalanced, f1": ((Y == 0).long(), torch.tensor([0.0, 1.0]), {"metric": "f1"}),
    "one output": ((Y < 7).float()[:, None], torch.ones(1), {"loss": "binary_cross_entropy"}),
    "labels": (torch.stack([Y < 5, Y < 2], 1).float(), torch.zeros(2), {"loss": "binary_cross_entropy", "metric": "f1"}),
    "tokens": (torch.stack([Y % 2, Y % 5], 1), torch.zeros(2, 5), {"loss": "token_cross_entropy"}),
    "pixels": (torch.stack([Y % 2, Y % 5], 1), torch.zeros(5, 2), {"loss": "cross_entropy"}),
    "numbers": (Y.float()[:, None], torch.full((1,), 4.5), {"loss": "mse", "metric": "r2"}),
    "calibration": (Y % 2, torch.zeros(2), {"metric": "negative_calibration_error"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_dead_model_has_learned_nothing(case: str) -> None:
    targets, outputs, settings = CASES[case]
    task = task_of(targets, **settings)
    found = standing(Fixed(outputs), task, task.validation)
    assert not found.learned
    assert found.constant is not None
    assert found.constant.value >= found.metric.value - 1e-6 or case == "calibration"


def test_the_constant_answer_is_that_of_scikit_learn() -> None:
    targets = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(1)).clamp(max=2)
    task = task_of(targets)
    found = best_constant(task, task.validation, torch.zeros(2, 3))
    dummy = DummyClassifier(strategy="most_frequent").fit(np.zeros((200, 1)), targets[:200])
    assert found is not None
    assert found.value == pytest.approx(dummy.score(np.zeros((200, 1)), targets[200:]))


def test_a_metric_of_the_rarer_class_is_compared_with_always_that_class() -> None:
    task = task_of((Y == 0).long(), metric="f1")
    found = best_constant(task, task.validation, torch.zeros(2, 2))
    assert found is not None
    assert (found.answer, found.value) == ("class 1", pytest.approx(2 * 0.1 / 1.1))  # 2p / (1 + p)


def test_a_position_has_its_own_most_frequent_class() -> None:
    targets = torch.stack([torch.zeros(100), torch.ones(100)], 1).long()
    task = task_of(targets, loss="token_cross_entropy")
    found = best_constant(task, task.validation, torch.zeros(2, 2, 2))
    assert found is not None
    assert found.value == 1.0


def test_a_useful_model_of_rare_classes_is_seen_by_its_loss(blobs: Task) -> None:
    x = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] + 0.8 * x[:, 1] > 2.2).long()  # 4 %
    task = Task(train=(x[:300], y[:300]), validation=(x[300:], y[300:]), test=(x[300:], y[300:]))
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.8]]))
        model.bias.copy_(torch.tensor([0.0, -4.0]))
    found = standing(model, task, task.validation)
    assert found.constant is not None
    assert found.metric.low <= found.constant.value  # accuracy does not show it
    assert found.learned


def test_a_start_at_chance_gives_no_gain_and_does_not_teach(blobs: Task, mlp: nn.Module, tmp_path: Path) -> None:
    dead = nn.Sequential(*mlp[:2], nn.Linear(16, 3))
    nn.init.zeros_(dead[2].weight)
    heard: list[str] = []

    def hear(event: Any) -> None:
        heard.extend([event["text"]] if event["event"] == "warning" else [])

    steps = [prune.Weights(sparsity=0.3, train=TRAIN)]
    result = compress(dead, blobs, steps, Goal(max_drop="1pt"), tmp_path / "run", callbacks=[hear])
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert result.constant is not None
    assert (result.constant.start_learned, result.constant.end_learned) == (False, True)
    assert "no gain or loss in accuracy can be told" in report["verdict"]
    assert "rose" not in report["verdict"]
    assert any("says nothing" in remark for remark in report["remarks"])
    assert "Goal met in numbers only" in (tmp_path / "run" / "report.html").read_text()
    assert "Goal met in numbers only" in (tmp_path / "run" / "README.md").read_text()
    assert any("not better than the same answer for every input" in text for text in heard)
    assert report["recipe"]["decisions"]["start_teaches"] is False
    assert not list((tmp_path / "run").rglob("teacher/*.safetensors"))


def test_a_dead_end_does_not_meet_a_relative_goal(blobs: Task, tmp_path: Path) -> None:
    x = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 1.5).long()  # 7 %
    task = Task(train=(x[:300], y[:300]), validation=(x[300:450], y[300:450]), test=(x[450:], y[450:]))
    result = compress(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)),
        task,
        [prune.Weights(sparsity=0.97)],
        Goal(max_drop="20pt"),
        tmp_path / "run",
        baseline=TRAIN,
    )
    assert result.constant is not None
    assert (result.constant.start_learned, result.constant.end_learned) == (True, False)
    assert not result.met
    assert "asked more than" in str(result.shortfalls[0])


def test_check_and_comparison_say_it_too(blobs: Task, tmp_path: Path) -> None:
    dead = nn.Sequential(nn.Linear(8, 3))
    nn.init.zeros_(dead[0].weight)
    steps = [prune.Weights(sparsity=0.3, train=Training(steps=2))]
    remarks = forecast(JobPlan(dead, blobs, Recipe(steps), Goal())).remarks
    assert any("not better than the same answer for every input" in remark and "baseline" in remark for remark in remarks)
    table = compare(dead, blobs, {"one": steps}, out=tmp_path / "compared", seeds=(0,)).table()
    assert "The model from which all start is not better than the same answer for every input" in table


def test_a_model_that_has_learned_teaches(blobs: Task, mlp: nn.Module) -> None:
    task = blobs.with_teacher(mlp)
    assert default_objective(task).needs_teacher
    assert not default_objective(task.without_lessons_of(mlp)).needs_teacher
