"""Recipes at equal budget: what is compared is what was run, and the numbers are right."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from mirabelle import Augmentation, Run, Task, Training, distill, prune
from mirabelle.errors import UserError
from mirabelle.job import comparison
from mirabelle.job.comparison import compare
from mirabelle.job.comparison_results import Budget, Comparison, Outcome
from mirabelle.numerics.statistics import mean_interval, paired_difference, paired_p_value, student_interval
from mirabelle.objectives import SoftTargets, TaskLoss
from mirabelle.task.metric import Metric
from mirabelle.training import fit
from students import Convolutional

SETTINGS = {"batch_size": 32, "lr": 0.01, "precision": "float32"}
CANDIDATES = {
    "alone": [distill.Student(width=0.5, train=Training(epochs=2, objective=1.0 * TaskLoss(), **SETTINGS))],
    "taught": [distill.Student(width=0.5, train=Training(epochs=4, objective=1.0 * SoftTargets(), **SETTINGS))],
}


@pytest.fixture
def trained(mlp: nn.Module, blobs: Task, tmp_path: Path) -> nn.Module:
    return fit(mlp, blobs, Training(epochs=4, **SETTINGS), Run(tmp_path / "dense"))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in folder.rglob("events.jsonl") for line in path.read_text().splitlines()]


def lengths(folder: Path) -> list[int]:
    """Optimizer steps of every training but those that are only timed."""
    ends = [event for event in lines(folder) if event["event"] == "epoch" and event["epoch"] == event["epochs"]]
    return [event["step"] for event in ends if "timed" not in event["where"]]


def test_candidates_are_judged_on_the_same_samples_and_go_on_where_they_stopped(
    trained: nn.Module, blobs: Task, tmp_path: Path
) -> None:
    task = blobs.with_teacher(trained)
    found = compare(trained, task, CANDIDATES, out=tmp_path / "c", seeds=(0, 1), budget=Budget(steps=22))
    assert {name: [one.seed for one in outcomes] for name, outcomes in found.outcomes.items()} == {
        "alone": [0, 1], "taught": [0, 1],
    }  # fmt: skip
    assert all(len(one.scores) == len(task.validation) for outcomes in found.outcomes.values() for one in outcomes)
    steps = [
        event["step"] for event in lines(tmp_path / "c") if event["event"] == "epoch" and event["epoch"] == event["epochs"]
    ]
    assert steps == [22] * 4, "every training is as long as the budget says"
    assert len(list((tmp_path / "c" / "teacher").iterdir())) == 1, "the teacher is asked once for all"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").rglob("model.safetensors")}
    again = compare(trained, task, CANDIDATES, out=tmp_path / "c", seeds=(0, 1, 2), budget=Budget(steps=22))
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    for name in CANDIDATES:
        assert np.array_equal(again.outcomes[name][1].scores, found.outcomes[name][1].scores)
    assert (tmp_path / "c" / "validation.md").read_text() == again.table()
    with pytest.raises(UserError, match="E150"):
        compare(trained, task, CANDIDATES, out=tmp_path / "c", seeds=(0,), budget=Budget(steps=23))


def test_seconds_become_steps_that_all_seeds_share(trained: nn.Module, blobs: Task, tmp_path: Path) -> None:
    task = blobs.with_teacher(trained)
    compare(trained, task, {"alone": CANDIDATES["alone"]}, out=tmp_path, seeds=(0, 1), budget=Budget(seconds=0.5))
    steps = lengths(tmp_path / "alone")
    assert len(steps) == 2
    assert steps[0] == steps[1] > 1


def test_a_rate_that_needs_its_warmup_is_timed_all_the_same(trained: nn.Module, blobs: Task, tmp_path: Path) -> None:
    hot = Training(epochs=1, objective=1.0 * TaskLoss(), **{**SETTINGS, "lr": 1e30})
    run = Run(tmp_path / "run")
    with pytest.raises(UserError, match="E201"):
        fit(copy.deepcopy(trained), blobs, hot, run)
    assert comparison.step_seconds(trained, blobs, hot, run.within("timed"), budget=0.1) > 0


def test_results_over_the_budget_are_marked(trained: nn.Module, blobs: Task, tmp_path: Path) -> None:
    recipes = {"half": [prune.Weights(sparsity=0.5)], "most": [prune.Weights(sparsity=0.9)]}
    sizes = [rows[0].size_bytes for rows in compare(trained, blobs, recipes, out=tmp_path / "a", seeds=(0,)).outcomes.values()]
    limit = sum(sizes) // 2
    found = compare(
        trained,
        blobs,
        recipes,
        out=tmp_path / "b",
        seeds=(0,),
        budget=Budget(size_bytes=limit, milliseconds=1e-6),
        judge="test",
    )
    over = {row.name: row.over for row in found.rows()}
    assert over["half"][0] == f"{sizes[0]:,} bytes of {limit:,}"
    assert all(said[-1].endswith(" ms of 1e-06 ms") for said in over.values())
    assert len(over["most"]) == 1
    assert "half (" in found.table()
    assert len(found.outcomes["half"][0].scores) == len(blobs.test)


def outcome(seed: int, scores: list[float]) -> Outcome:
    return Outcome(seed, float(np.mean(scores)), np.array(scores), 10.0, 5, 100, 7, None)


def test_the_numbers_of_a_row() -> None:
    rng = np.random.default_rng(0)
    ones = [[float(x) for x in rng.random(200) < share] for share in (0.6, 0.62, 0.7, 0.74)]
    outcomes = {"plain": [outcome(0, ones[0]), outcome(1, ones[1])], "taught": [outcome(0, ones[2]), outcome(1, ones[3])]}
    best, other = Comparison(Metric.of("accuracy"), "test", "plain", Budget(), outcomes).rows()
    assert (best.name, other.name, other.difference, other.p_value) == ("taught", "plain", None, None)
    assert best.metric == student_interval(np.array([np.mean(ones[2]), np.mean(ones[3])]))
    differences = np.array([np.mean(ones[2]) - np.mean(ones[0]), np.mean(ones[3]) - np.mean(ones[1])])
    assert best.difference == student_interval(differences)
    means = [np.mean(ones[:2], axis=0), np.mean(ones[2:], axis=0)]
    assert best.p_value == paired_p_value(*means)
    single = {name: rows[:1] for name, rows in outcomes.items()}
    (row, _) = Comparison(Metric.of("accuracy"), "test", "plain", Budget(), single).rows()
    assert row.difference == paired_difference(np.array(ones[0]), np.array(ones[2]))
    assert row.metric == mean_interval(np.array(ones[2]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reference": "none"}, 'the reference "none"'),
        ({"seeds": ()}, "needs seeds"),
        ({"budget": Budget(steps=5)}, "needs recipes with trainings"),
    ],
)
def test_what_cannot_be_compared_is_told(
    settings: dict[str, Any], words: str, mlp: nn.Module, blobs: Task, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"E111.*{words}"):
        compare(mlp, blobs, {"half": [prune.Weights(sparsity=0.5)]}, out=tmp_path, **settings)
    with pytest.raises(UserError, match=r"E111.*either steps or seconds"):
        Budget(steps=3, seconds=2.0)


def test_another_metric_or_augmentation_is_another_comparison(
    mlp: nn.Module, blobs: Task, images: Task, tmp_path: Path
) -> None:
    recipes = {"half": [prune.Weights(sparsity=0.5)]}
    compare(mlp, blobs, recipes, out=tmp_path / "a", seeds=(0,))
    other = blobs.replace(metric=Metric.of(lambda outputs, targets: (outputs.argmax(1) != targets).double()))
    with pytest.raises(UserError, match="E150"):
        compare(mlp, other, recipes, out=tmp_path / "a", seeds=(0,))
    net = Convolutional(4)
    compare(net, images, recipes, out=tmp_path / "b", seeds=(0,))
    with pytest.raises(UserError, match="E150"):
        compare(net, images.with_augment(Augmentation(flip=True)), recipes, out=tmp_path / "b", seeds=(0,))


def test_a_budget_holds_for_seeds_that_come_later(trained: nn.Module, blobs: Task, tmp_path: Path) -> None:
    recipes = {"alone": CANDIDATES["alone"]}
    compare(trained, blobs, recipes, out=tmp_path, seeds=(0,), budget=Budget(steps=3))
    with pytest.raises(UserError, match="E150"):
        compare(trained, blobs, recipes, out=tmp_path, seeds=(1,), budget=Budget(steps=30))


def test_the_model_teaches_where_nobody_else_does(trained: nn.Module, blobs: Task, tmp_path: Path) -> None:
    found = compare(
        trained, blobs, {"taught": CANDIDATES["taught"]}, out=tmp_path, seeds=(0,), budget=Budget(seconds=0.3)
    )  # fmt: skip
    assert found.outcomes["taught"][0].metric > 0.4


def test_equal_results_have_no_spread() -> None:
    outcomes = {name: [outcome(seed, [1.0, 1.0, 0.0]) for seed in range(3)] for name in ("a", "b")}
    best, other = Comparison(Metric.of("accuracy"), "test", "a", Budget(), outcomes).rows()
    assert best.metric == pytest.approx((2 / 3,) * 3)
    assert (best.difference or other.difference) == (0.0, 0.0, 0.0)


def test_every_candidate_is_tried_before_anything_begins(trained: nn.Module, blobs: Task, tmp_path: Path) -> None:
    wrong = {"wrong": [prune.Weights(sparsity=0.5, include=("nothing",))]}
    with pytest.raises(UserError, match="E112"):
        compare(trained, blobs, {**CANDIDATES, **wrong}, out=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_budget_of_steps_is_divided_among_all_trainings_of_rounds(trained: nn.Module, blobs: Task, tmp_path: Path) -> None:
    step = prune.Weights(sparsity=0.5, rounds=2, rewind="weights", train=Training(steps=4, **SETTINGS))
    compare(trained, blobs, {"rounds": [step]}, out=tmp_path / "c", seeds=(0,), budget=Budget(steps=30))
    assert lengths(tmp_path / "c") == [10, 10, 10]
