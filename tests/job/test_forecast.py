"""`check`: what will be done and what it will take, found without training."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from mirabelle import Goal, Recipe, Task, Training, compress, distill, prune, quantize
from mirabelle.errors import UserError
from mirabelle.job.dry_run import JobPlan, try_steps
from mirabelle.job.forecast import folder_space, forecast
from mirabelle.model.state import fingerprint
from mirabelle.objectives import L1, SoftTargets
from mirabelle.task import Indexed, Reading, Samples

TRAIN = Training(epochs=60, batch_size=20, lr=0.02, precision="float32")


@pytest.fixture
def plan(cnn: nn.Module, images: Task) -> JobPlan:
    recipe = Recipe([prune.Weights(sparsity=0.75, schedule="cubic", train=TRAIN), quantize.Static()])
    return JobPlan(cnn, images, recipe, Goal(size="90%", macs="50%", max_drop="50pt"), baseline=TRAIN)


def test_the_end_is_told_as_it_comes(plan: JobPlan, tmp_path: Path) -> None:
    before = fingerprint(plan.model)
    found = forecast(plan, free_memory=1 << 50, free_disk=1 << 50)
    assert not any(remark.startswith(("Memory", "The disk")) for remark in found.remarks)
    assert fingerprint(plan.model) == before
    assert json.loads(json.dumps(found.to_data()))["inputs"] == "(2, 1, 8, 8)"
    assert found.outputs == "(2, 3)"
    assert found.reading_in_words()[0][1].startswith("in memory, ")
    assert [step.name for step in found.steps] == ["baseline", "prune.Weights", "quantize.Static"]
    assert [step.optimizer_steps for step in found.steps] == [600, 600, 0]
    assert "108 of 144 weights become zero" in found.steps[1].description
    assert found.steps[2].description == ("2 layers are quantized: 0, 4",)
    begin = time.monotonic()
    result = compress(plan.model, plan.task, plan.recipe, plan.goal, out=tmp_path / "run", baseline=plan.baseline)
    seconds = time.monotonic() - begin
    assert found.end.macs == result.profile.macs
    assert found.end.parameters == result.profile.parameters
    assert found.end.size_bytes.onnx == pytest.approx(result.profile.size_bytes.onnx, rel=0.02)
    assert found.end.size_bytes.packed == pytest.approx(result.profile.size_bytes.packed, rel=0.1)
    assert seconds / 20 < found.seconds < 20 * seconds, "an estimate on a shared machine, but not of another kind"
    assert all(step.seconds > 0.05 for step in found.steps[:2]), "six hundred optimizer steps take their time"
    used = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert used < 3 * found.disk_bytes
    assert found.memory_bytes > 50e6
    assert [shortfall.name for shortfall in found.shortfalls] == ["macs"]
    assert any("The goal on macs would be missed" in remark for remark in found.remarks)


def test_what_reading_takes_is_part_of_the_time(plan: JobPlan) -> None:
    data = plan.task.train
    assert isinstance(data, Samples)

    def seconds(cost: Callable[[int], Reading]) -> float:
        unread = Indexed(lambda index: data.at(index).inputs, data.targets, "images", cost=cost)
        return forecast(
            dataclasses.replace(plan, task=plan.task.replace(train=unread), recipe=Recipe([quantize.Static()]))
        ).seconds

    assert seconds(lambda count: Reading("source", 0, seconds=count)) > 60 * len(data)  # in each of sixty epochs
    once = seconds(lambda _: Reading("file", 1, seconds=1e6, place=Path("a.npy")))
    assert 1e6 < once < 1.1e6


def test_too_little_memory_and_disk_are_told(plan: JobPlan) -> None:
    short = dataclasses.replace(plan, recipe=Recipe([quantize.Static()]), baseline=None)
    remarks = forecast(short, free_memory=1, free_disk=1).remarks
    assert any(remark.startswith("Memory may run out") for remark in remarks)
    assert any(remark.startswith("The disk is too full") for remark in remarks)


def test_a_layer_that_would_lose_every_weight_is_named(plan: JobPlan) -> None:
    with torch.no_grad():
        plan.model[4].weight.mul_(1e-6)
    wiped = Recipe([prune.Weights(sparsity=0.75, scope="global", floor=0.0)])
    found = forecast(dataclasses.replace(plan, recipe=wiped, baseline=None))
    assert found.emptied == ["4.weight"]
    assert "4.weight would lose all its weights, so no information would pass through it." in found.remarks


def test_space_is_that_of_the_nearest_folder_there_is(tmp_path: Path) -> None:
    assert folder_space(tmp_path / "a" / "b") == pytest.approx(folder_space(tmp_path), rel=0.1)


def test_every_step_and_every_loss_is_tried_before_anything_begins(plan: JobPlan, tmp_path: Path) -> None:
    wrong = [
        prune.Weights(sparsity=0.5, include=("conv*",)),
        prune.Weights(sparsity=0.5, train=dataclasses.replace(TRAIN, objective=1.0 * L1(include=("fc",)))),
        quantize.Static(exclude=("nothing",)),
    ]
    with pytest.raises(UserError) as caught:
        compress(plan.model, plan.task, wrong, out=tmp_path / "run")
    assert [error.path for error in caught.value.errors] == [
        ("step", 0, "include", 0),
        ("step", 1, "include", 0),
        ("step", 2, "exclude", 0),
    ]
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_classes_is_told_before_anything_begins(plan: JobPlan) -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    taught = dataclasses.replace(plan, teacher=teacher)
    with pytest.raises(UserError, match=r"student gives outputs of shape .* for each sample, the teacher"):
        try_steps(taught)


def test_soft_targets_without_a_teacher_are_told_before_anything_begins(plan: JobPlan) -> None:
    alone = dataclasses.replace(plan, baseline=dataclasses.replace(TRAIN, objective=1.0 * SoftTargets()))
    with pytest.raises(UserError, match="needs a teacher") as caught:
        try_steps(alone)
    assert caught.value.path == ("baseline",)


def test_a_student_is_previewed_with_its_size(plan: JobPlan) -> None:
    student = distill.Student(
        model="mirabelle.sources.zoo:digits_mlp", arguments={"hidden": 4}, train=dataclasses.replace(TRAIN, epochs=1)
    )
    task = Task(train=(torch.randn(60, 1, 8, 8), torch.arange(60) % 3), test=(torch.randn(6, 1, 8, 8), torch.arange(6) % 3))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    (step,) = forecast(JobPlan(model, task, Recipe([student]), Goal())).steps
    assert step.description == ("the model is replaced by mirabelle.sources.zoo:digits_mlp: 310 parameters instead of 650",)
    assert step.parameters == 310
