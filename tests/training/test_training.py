"""The one loop: it learns, stops, keeps the best, holds zeros, and goes on bit for bit."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kills import KilledAt, KilledError
from mirabelle import Augmentation, Gradual, Run, Task, Training, prune
from mirabelle.errors import UserError
from mirabelle.model.architecture import Architecture, attach
from mirabelle.model.state import fingerprint
from mirabelle.objectives import L1, Forward, SoftTargets, TaskLoss
from mirabelle.task.samples import Samples, Stream
from mirabelle.training import Execution, Joint, evaluate, fastest_execution, fit
from mirabelle.training.checkpoint import Checkpoint
from mirabelle.training.evaluation import evaluation
from mirabelle.training.teacher import Teacher, guidance


def accuracy(model: nn.Module, task: Task) -> float:
    return float(evaluate(model, task.validation, task).mean())


def events(run: Run, kind: str) -> list[dict[str, Any]]:
    lines = (run.journal.folder / "events.jsonl").read_text("utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_it_learns(mlp: nn.Module, blobs: Task, run: Run, optimizer: str) -> None:
    model = fit(mlp, blobs, Training(epochs=8, batch_size=32, lr=0.02, optimizer=optimizer), run)
    assert accuracy(model, blobs) > 0.9
    assert not model.training
    assert [event["epoch"] for event in events(run, "epoch")] == list(range(1, 9))


def test_the_steps_are_those_of_a_bare_loop(mlp: nn.Module, blobs: Task, run: Run) -> None:
    """The same batches, optimizer and learning rates written out by hand give the same bits."""
    bare = copy.deepcopy(mlp)
    training = Training(epochs=2, batch_size=64, lr=0.01, lr_schedule="constant", keep="last", precision="float32")
    fit(mlp, blobs, training, run)
    optimizer = torch.optim.AdamW(bare.parameters(), 0.01, weight_decay=0.0, fused=True)
    for epoch in range(2):
        order = torch.randperm(400, generator=torch.Generator().manual_seed(run.seed_for("order", epoch)))
        for k in range(6):
            index = order[k * 64 : (k + 1) * 64]
            loss = nn.functional.cross_entropy(bare(blobs.train.inputs[index]), blobs.train.targets[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert fingerprint(mlp) == fingerprint(bare)


def test_steps_may_be_given_instead_of_epochs(mlp: nn.Module, blobs: Task, run: Run) -> None:
    fit(mlp, blobs, Training(steps=20, batch_size=32), run)  # 12 steps an epoch
    assert len(events(run, "epoch")) == 2


def test_the_best_weights_come_back(mlp: nn.Module, blobs: Task, run: Run) -> None:
    model = fit(mlp, blobs, Training(epochs=6, batch_size=32, lr=0.02, lr_schedule="constant"), run)
    assert accuracy(model, blobs) == max(event["metric"] for event in events(run, "epoch"))


def test_patience_stops_a_training_that_no_longer_improves(mlp: nn.Module, blobs: Task, run: Run) -> None:
    fit(mlp, blobs, Training(epochs=100, batch_size=32, lr=0.02, patience=3), run)
    values = [event["metric"] for event in events(run, "epoch")]
    assert len(values) < 100
    assert values.index(max(values)) == len(values) - 4
    assert "no better metric for 3 epochs" in events(run, "stopped")[0]["why"]


def test_training_stops_when_the_metric_is_reached(mlp: nn.Module, blobs: Task, run: Run) -> None:
    fit(mlp, blobs, Training(epochs=100, batch_size=32, lr=0.02, until=0.8), run)
    values = [event["metric"] for event in events(run, "epoch")]
    assert values[-1] >= 0.8
    assert all(value < 0.8 for value in values[:-1])


def test_a_diverging_loss_is_reported_with_a_remedy(mlp: nn.Module, blobs: Task, run: Run) -> None:
    before = fingerprint(mlp)
    with pytest.raises(UserError, match=r"E201.*diverged in epoch \d+.*of step 0.*\n.*with lr = 1e\+29") as caught:
        fit(mlp, blobs, Training(epochs=30, batch_size=32, lr=1e30, optimizer="sgd", lr_schedule="constant"), run)
    assert caught.value.exit_status == 3
    assert fingerprint(mlp) == before, "the model is rolled back to its last finite weights"


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_last_step_that_diverges_is_rolled_back_too(mlp: nn.Module, blobs: Task, run: Run, keep: Any) -> None:
    before = fingerprint(mlp)
    with pytest.raises(UserError, match=r"E201.*a weight is no longer finite.*of step 0"):
        fit(mlp, blobs, Training(steps=1, batch_size=32, lr=1e39, optimizer="sgd", lr_schedule="constant", keep=keep), run)
    assert fingerprint(mlp) == before


def test_l1_shrinks_the_weights(mlp: nn.Sequential, blobs: Task, run: Run, tmp_path: Path) -> None:
    free = fit(copy.deepcopy(mlp), blobs, Training(epochs=4, batch_size=32, lr=0.01), run)
    objective = 1.0 * TaskLoss() + 0.01 * L1()
    shrunk = fit(mlp, blobs, Training(epochs=4, batch_size=32, lr=0.01, objective=objective), Run(tmp_path / "other"))
    assert shrunk[0].weight.abs().sum() < 0.8 * free[0].weight.abs().sum()


def test_a_teacher_guides_and_its_outputs_are_computed_once(mlp: nn.Module, blobs: Task, run: Run) -> None:
    teacher = copy.deepcopy(mlp)
    calls = []
    teacher.register_forward_hook(lambda module, inputs, outputs: calls.append(len(outputs)))
    task = blobs.with_teacher(teacher)
    fit(mlp, task, Training(epochs=3, batch_size=32, objective=1.0 * SoftTargets()), run)
    assert sum(calls) == 400
    kept = list((run.folder / "teacher").iterdir())
    assert len(kept) == 1
    fit(mlp, task, Training(epochs=1, batch_size=32, objective=1.0 * SoftTargets()), Run(run.folder))
    assert sum(calls) == 400


def test_the_cache_is_not_used_for_another_teacher_or_other_data(mlp: nn.Module, blobs: Task, run: Run) -> None:
    training = Training(epochs=1, batch_size=32, objective=1.0 * SoftTargets())
    fit(mlp, blobs.with_teacher(copy.deepcopy(mlp)), training, run)
    other = copy.deepcopy(mlp)
    with torch.no_grad():
        other[0].weight.mul_(2)
    fit(mlp, blobs.with_teacher(other), training, run)
    assert len(list((run.folder / "teacher").iterdir())) == 2
    blobs.train.inputs[3] += 1
    fit(mlp, blobs.with_teacher(other), training, run)
    assert len(list((run.folder / "teacher").iterdir())) == 3


def test_cached_and_live_teachers_agree_up_to_the_rounding_of_a_product(mlp: nn.Module, blobs: Task, run: Run) -> None:
    look_up = guidance(mlp, blobs.train, run)
    batch = blobs.train.at(torch.tensor([7, 3, 250]))
    with torch.no_grad():
        assert torch.allclose(look_up(batch).outputs, mlp(batch.inputs), atol=1e-6)


class Rows(nn.Module):
    """One product an output and no sum, so that a sample gets the same bits in every batch, on every processor."""

    def __init__(self, classes: int = 101) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(classes, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1] * self.weight


class OtherWithOtherRows(Rows):
    """Differs with the number of rows by at most 2 `delta`: what the order of a sum does, made as large as one likes."""

    def __init__(self, delta: float, classes: int = 101) -> None:
        super().__init__(classes)
        self.delta = delta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        drawn = torch.rand(len(x), len(self.weight), generator=torch.Generator().manual_seed(len(x)))
        return super().forward(x) + self.delta * (2 * drawn - 1)


def cached_and_live(teacher: nn.Module, task: Task, run: Run) -> tuple[Teacher, Teacher]:
    loader = DataLoader(TensorDataset(task.train.inputs, task.train.targets), batch_size=32, shuffle=True)
    return guidance(teacher, task.train, run), guidance(teacher, Stream(loader), run)


def test_outputs_over_many_classes_are_rounded_in_the_cache_and_live(blobs: Task, run: Run) -> None:
    teacher = Rows()
    cached, live = cached_and_live(teacher, blobs, run)
    batch = blobs.train.at(torch.tensor([7, 3, 250]))
    assert torch.equal(cached(batch).outputs, live(batch).outputs)
    exact = teacher(batch.inputs)
    bound = (exact.amax(1) - exact.amin(1)) / 510
    off = (cached(batch).outputs - exact).abs().amax(1)
    assert (off <= bound * 1.0001).all()
    assert (off > 0).all()
    (told,) = [event for event in events(run, "teacher") if event["cached"]]
    assert told["bytes"] == 400 * (101 + 8), "a byte a class, and where it begins and steps"
    flat = guidance(nn.Sequential(nn.Linear(8, 101), nn.Threshold(1e9, 2.0)), blobs.train, run)
    assert torch.equal(flat(batch).outputs, torch.full((3, 101), 2.0)), "a decision with no range is exact"


@pytest.mark.parametrize("delta", [None, 1e-6, 1e-4, 1e-3, 1e-1])
@pytest.mark.parametrize("classes", [100, 101])
def test_where_a_teacher_differs_with_the_batch_cached_and_live_outputs_differ_by_a_step_at_most(
    delta: float | None, classes: int, blobs: Task, run: Run
) -> None:
    """`guidance` says why; a linear layer (None) differs with the batch by what it does on this processor."""
    torch.manual_seed(0)
    teacher = nn.Linear(8, classes) if delta is None else OtherWithOtherRows(delta, classes)
    cached, live = cached_and_live(teacher, blobs, run)
    batch = blobs.train.at(torch.arange(0, 400, 8))
    with torch.inference_mode():
        raw = teacher(blobs.train.inputs)[batch.index]
        differs = float((teacher(batch.inputs) - raw).abs().max())
    step = (raw.amax(1) - raw.amin(1))[:, None] / 255
    apart = (cached(batch).outputs - live(batch).outputs).abs()
    rounding = 4 * torch.finfo(torch.float32).eps * float(raw.abs().max())
    if classes <= 100:
        assert float(apart.max()) == differs
        return
    assert (apart <= step + 2 * differs + rounding).all()
    rare = 3 * float(step.max()) / apart.numel()  # three outputs that lie in the middle between two steps
    assert float(apart.mean()) <= 4 * differs + rounding + rare
    assert delta != 1e-3 or (apart > step / 2).any(), "a rounding of its own, the size of a step"


def test_outputs_over_few_classes_are_kept_as_they_are(run: Run) -> None:
    data = Samples(torch.rand(50, 3, 32, 32), torch.zeros(50, dtype=torch.long))
    guidance(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), data, run)
    assert events(run, "teacher")[0]["bytes"] == 50 * 10 * 4


def test_outputs_of_a_teacher_that_runs_in_bfloat16_take_half_the_bytes_and_lose_nothing(run: Run) -> None:
    torch.manual_seed(0)
    data = Samples(torch.rand(50, 3, 32, 32), torch.zeros(50, dtype=torch.long))
    teacher, half = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), Execution("bfloat16", channels_last=False)
    kept = guidance(teacher, data, run, augment=Augmentation(flip=True, views=1), execution=half)
    live = guidance(teacher, data, run, augment=Augmentation(flip=True), execution=half)
    batch = Augmentation(flip=True, views=1)(data.first(50), 0)
    given = kept(batch).outputs
    assert given.dtype == torch.float32
    assert torch.equal(given, live(batch).outputs)  # of the same 50 rows in one batch
    assert next(event for event in events(run, "teacher") if event["cached"])["bytes"] == 50 * 10 * 2


def test_a_shuffling_loader_trains_too(mlp: nn.Module, blobs: Task, run: Run) -> None:
    loader = DataLoader(TensorDataset(blobs.train.inputs, blobs.train.targets), batch_size=32, shuffle=True)
    task = Task(train=loader, validation=blobs.validation, test=blobs.test).with_teacher(copy.deepcopy(mlp))
    model = fit(mlp, task, Training(epochs=8, lr=0.02, objective=0.1 * SoftTargets() + TaskLoss()), run)
    assert accuracy(model, task) > 0.9
    assert "the loader shuffles" in events(run, "teacher")[0]["why"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_teacher_of_augmented_images_sees_what_the_model_sees(images: Task, run: Run, precision: str) -> None:
    seen: dict[str, list[torch.Tensor]] = {"model": [], "teacher": []}
    task = images.with_augment(Augmentation(crop=2, flip=True))
    model, teacher = dropout_net(), dropout_net()
    model.register_forward_pre_hook(lambda module, given: seen["model"].append(given[0]) if module.training else None)
    modes: list[bool] = []
    teacher.register_forward_pre_hook(lambda module, given: seen["teacher"].append(given[0]))
    teacher.register_forward_pre_hook(lambda module, given: modes.append(module.training))
    run.journal.decisions["execution"] = precision
    fit(model, task.with_teacher(teacher), Training(epochs=2, batch_size=100, objective=1.0 * SoftTargets()), run)
    assert all(map(torch.equal, seen["model"], seen["teacher"]))
    assert len(seen["teacher"]) == 4
    assert "augmented" in events(run, "teacher")[0]["why"]
    assert not events(run, "teacher")[0]["cached"]
    assert not (run.folder / "teacher").exists()
    assert modes == [False] * 4
    assert teacher.training, "it has its own mode again"


def test_views_that_recur_are_taught_once(images: Task, run: Run) -> None:
    augment = Augmentation(crop=2, flip=True, views=2)
    model, teacher = dropout_net(), dropout_net()
    counted: list[int] = []
    teacher.register_forward_pre_hook(lambda _, given: counted.append(len(given[0])))
    task = images.with_augment(augment).with_teacher(teacher)
    training = Training(epochs=5, batch_size=100, objective=1.0 * SoftTargets(), precision="float32")
    fit(model, task, training, run)
    assert sum(counted) == 2 * len(task.train), "five epochs see two views, each of them computed once"
    assert len(list((run.folder / "teacher").iterdir())) == 2
    given = guidance(teacher, task.train, run, augment=augment, execution=Execution("float32", channels_last=False))
    batch = augment(task.train.at(torch.tensor([7, 3, 50])), 3)
    with torch.no_grad():
        torch.testing.assert_close(given(batch).outputs, teacher.eval()(batch.inputs), atol=1e-5, rtol=1e-5)
    assert augment(batch, 3).view == augment(batch, 1).view != augment(batch, 2).view


def test_a_live_teacher_gives_its_own_outputs_in_float32(images: Task, run: Run) -> None:
    teacher = dropout_net()
    given = guidance(
        teacher, images.train, run, augment=Augmentation(crop=1), execution=Execution("bfloat16", channels_last=True)
    )
    batch = images.train.first(5)
    outputs = given(batch).outputs
    assert outputs.dtype == torch.float32
    assert not outputs.is_inference()
    with torch.no_grad():
        torch.testing.assert_close(outputs, teacher.eval()(batch.inputs), atol=0.03, rtol=0.03)


# What is pruned stays pruned, and only that.


@pytest.mark.parametrize("settings", [{"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-2}, {"optimizer": "adamw"}])
def test_pruned_weights_stay_zero_and_fresh_zero_biases_learn(
    mlp: nn.Sequential, blobs: Task, run: Run, settings: Mapping[str, Any]
) -> None:
    with torch.no_grad():
        for layer in (mlp[0], mlp[2]):
            layer.bias.zero_()
    pruned = prune.Weights(sparsity=0.8)(mlp, blobs, run)
    zeros = {name: parameter == 0 for name, parameter in pruned.named_parameters() if parameter.dim() > 1}
    assert sum(int(mask.sum()) for mask in zeros.values()) == int(0.8 * 128) + int(0.8 * 48)
    model = fit(copy.deepcopy(pruned), blobs, Training(epochs=5, batch_size=32, lr=0.01, **settings), run)
    for name, mask in zeros.items():
        assert torch.equal(model.get_parameter(name) == 0, mask)
    connected = (model[0].weight != 0).any(dim=1) & (model[2].weight != 0).any(dim=0)
    assert int(connected.sum()) >= 5
    assert bool((model[0].bias[connected] != 0).all())
    assert bool((model[2].bias != 0).all())


def test_other_zeros_are_not_held(mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    with torch.no_grad():
        mlp[0].weight.zero_()
        mlp[2].weight[0].zero_()
    attach(mlp, Architecture().with_pruned(["2.weight"]))
    model = fit(mlp, blobs, Training(epochs=2, batch_size=32, lr=0.01), run)
    assert bool((model[2].weight[0] == 0).all())
    assert bool((model[0].weight != 0).any())


def test_momentum_does_not_gather_behind_a_mask(mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    from mirabelle.training.kept_zeros import KeptZeros
    from mirabelle.training.optimizer import optimizer_for

    pruned = prune.Weights(sparsity=0.5)(mlp, blobs, run)
    optimizer = optimizer_for(pruned.parameters(), Training(epochs=1))
    zeros = KeptZeros(pruned, optimizer)
    for _ in range(3):
        nn.functional.cross_entropy(pruned(blobs.train.inputs), blobs.train.targets).backward()
        optimizer.step()
        zeros.keep()
    weight = pruned[0].weight
    for key in ("exp_avg", "exp_avg_sq"):
        state = optimizer.state[weight][key]
        assert bool((state[weight == 0] == 0).all())
        assert bool((state[weight != 0] != 0).any())


# Killed anywhere, the same call goes on to the same bits.


def dropout_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 3)
    )  # fmt: skip


@pytest.fixture
def every_step_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "due", property(lambda self: True))


def run_in(folder: Path, execution: str = "float32") -> Run:
    """A run in which the execution, which is measured and may come out another way each time, is decided."""
    run = Run(folder)
    run.journal.decisions["execution"] = execution
    return run


@pytest.mark.usefixtures("every_step_is_kept")
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("execution", ["float32", "float32 channels_last", "bfloat16 channels_last"])
def test_a_killed_training_ends_with_the_same_bits(images: Task, tmp_path: Path, optimizer: str, execution: str) -> None:
    training = Training(epochs=4, batch_size=32, optimizer=optimizer, lr=0.01, patience=10, clip=1.0)
    step = prune.Weights(sparsity=0.7, schedule=prune_quickly(), train=training)
    task = images.with_teacher(dropout_net())

    whole = step(dropout_net(), task, run_in(tmp_path / "whole", execution))
    for kill_at in (1, 6, 13):
        folder = tmp_path / f"killed at {kill_at}"
        prepared = step.prepare(dropout_net(), task, run_in(folder, execution))
        controls = [*prepared.controls(prepared.model), KilledAt(kill_at)]
        with pytest.raises(KilledError):
            fit(prepared.model, task, training, run_in(folder, execution), controls=controls)
        written = Checkpoint(folder / "checkpoint.safetensors").read()
        if written is not None:  # the fake control is not part of the real run
            groups, numbers = written
            Checkpoint(folder / "checkpoint.safetensors").write(groups, {**numbers, "controls": numbers["controls"][:1]})
        again = step(dropout_net(), task, run_in(folder, execution))
        assert fingerprint(again) == fingerprint(whole), f"killed at step {kill_at}"
        assert (written is None) == (kill_at == 1)


@pytest.mark.usefixtures("every_step_is_kept")
@pytest.mark.parametrize("execution", ["float32", "bfloat16 channels_last"])
def test_a_killed_training_on_augmented_images_ends_with_the_same_bits(images: Task, tmp_path: Path, execution: str) -> None:
    training = Training(epochs=3, batch_size=32, lr=0.01)
    task = images.with_augment(Augmentation(crop=2, flip=True)).with_teacher(dropout_net())
    model = dropout_net()
    whole = fit(model, task, training, run_in(tmp_path / "whole", execution))
    for kill_at in (4, 9):
        folder = tmp_path / f"killed at {kill_at}"
        with pytest.raises(KilledError):
            fit(dropout_net(), task, training, run_in(folder, execution), controls=[KilledAt(kill_at)])
        groups, numbers = Checkpoint(folder / "checkpoint.safetensors").read() or ({}, {})
        Checkpoint(folder / "checkpoint.safetensors").write(groups, {**numbers, "controls": []})
        again = fit(dropout_net(), task, training, run_in(folder, execution))
        assert fingerprint(again) == fingerprint(whole), f"killed at step {kill_at}"
    plain = fit(dropout_net(), images.with_teacher(dropout_net()), training, run_in(tmp_path / "plain", execution))
    assert fingerprint(plain) != fingerprint(whole)


@pytest.mark.usefixtures("every_step_is_kept")
@pytest.mark.parametrize("steps", [None, 16])
def test_an_epoch_that_dies_before_it_is_judged_is_judged_by_the_next_run(
    images: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int | None
) -> None:
    training = Training(epochs=None if steps else 4, steps=steps, batch_size=32, lr=0.05, patience=1)
    whole = fit(dropout_net(), images, training, run_in(tmp_path / "whole"))
    evaluate_metrics = [event["metric"] for event in events(Run(tmp_path / "whole"), "epoch")]
    for dies in range(1, len(evaluate_metrics) + 1):
        run, calls = run_in(tmp_path / f"dies at {dies}"), iter(range(1, dies + 1))

        def dying(*arguments: Any, calls: Iterator[int] = calls, dies: int = dies) -> Any:
            if next(calls) == dies:
                raise KilledError
            return evaluate(*arguments)

        monkeypatch.setattr("mirabelle.training.loop.evaluate", dying)
        with pytest.raises(KilledError):
            fit(dropout_net(), images, training, run)
        monkeypatch.setattr("mirabelle.training.loop.evaluate", evaluate)
        again = fit(dropout_net(), images, training, run)
        assert [event["metric"] for event in events(run, "epoch")] == evaluate_metrics
        assert fingerprint(again) == fingerprint(whole)


def prune_quickly() -> Any:
    from mirabelle import Gradual

    return Gradual(begin=0.1, end=0.6, frequency=2)


@pytest.mark.usefixtures("every_step_is_kept")
def test_a_checkpoint_holds_no_pickle_and_a_damaged_one_is_named(mlp: nn.Module, blobs: Task, run: Run) -> None:
    fit(mlp, blobs, Training(epochs=1, batch_size=32), run)
    path = run.folder / "checkpoint.safetensors"
    assert b"pickle" not in path.read_bytes()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="E141"):
        fit(mlp, blobs, Training(epochs=1, batch_size=32), run)


@pytest.mark.usefixtures("every_step_is_kept")
def test_a_second_training_in_the_folder_of_a_first_is_refused(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    def trained(**changed: Any) -> nn.Module:
        settings = {
            "sparsity": 0.5,
            "schedule": Gradual(begin=0.0, end=1.0),
            "train": Training(epochs=1, batch_size=32),
            **changed,
        }
        return prune.Weights(**settings)(copy.deepcopy(mlp), blobs, Run(tmp_path / "run"))

    first = trained()
    for changed, told in (
        ({"sparsity": 0.75}, "amount: 0.5 there, 0.75 here"),
        ({"exclude": ("2.*",)}, "exclude: a table there, a table here"),
        ({"train": Training(epochs=2, batch_size=32)}, "epochs: 1 there, 2 here"),
        ({"train": Training(epochs=1, batch_size=32, objective=1.0 * L1())}, "objective"),
    ):
        with pytest.raises(UserError, match=told) as caught:
            trained(**changed)
        assert caught.value.code == "E150"
    with pytest.raises(UserError, match=r"E150.*controls"):
        fit(copy.deepcopy(mlp), blobs, Training(epochs=1, batch_size=32), Run(tmp_path / "run"))
    assert fingerprint(trained()) == fingerprint(first)


def test_checkpoints_are_written_so_seldom_that_they_cost_one_percent(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c.safetensors")
    assert not checkpoint.due
    checkpoint.write({"model": {"a": torch.zeros(200_000)}}, {"step": 1})
    assert not checkpoint.due
    assert checkpoint._pause >= 1.0
    assert Checkpoint(tmp_path / "large.safetensors", 10**9)._pause == pytest.approx(200)  # it takes about 2 seconds


# How it runs fastest.


def test_the_measured_execution_is_written_down_before_it_is_used(cnn: nn.Module, images: Task, run: Run) -> None:
    fit(cnn, images, Training(epochs=1, batch_size=32), run)
    chosen = run.journal.decisions["execution"]
    assert str(Execution.parse(chosen)) == chosen
    assert f'execution = "{chosen}"' in (run.folder / "recipe.toml").read_text("utf-8")
    assert events(run, "decision")[0]["value"] == chosen


def test_measuring_leaves_the_model_and_the_generator_alone(cnn: nn.Module, images: Task) -> None:
    before, state = fingerprint(cnn), torch.get_rng_state()
    fastest_execution(cnn, images.example(32), images.loss)
    assert fingerprint(cnn) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in cnn.parameters())


def test_an_execution_in_which_the_model_cannot_run_is_not_chosen(images: Task) -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(x).view(-1, 4 * 36))

    model = Viewed()
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        copy.deepcopy(model).to(memory_format=torch.channels_last)(
            images.example(8).inputs.contiguous(memory_format=torch.channels_last)
        )
    assert not fastest_execution(model, images.example(8), images.loss).channels_last


@pytest.mark.parametrize("channels", [1, 3])
def test_the_strides_of_images_say_their_layout_whatever_they_were(channels: int) -> None:
    # Of images with one channel both layouts have the same elements in the same order; a convolution goes by the strides.
    plain = torch.rand(4, channels, 6, 5)
    for given in (plain, plain.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), torch.rand(4, 2 * channels, 6, 5)[:, ::2]):
        as_planes = Execution("float32", channels_last=False).inputs(given)
        last = Execution("float32", channels_last=True).inputs(given)
        assert torch.equal(as_planes, given)
        assert torch.equal(last, given)
        assert as_planes.stride() == (30 * channels, 30, 5, 1)
        assert last.stride() == (30 * channels, 1, 5 * channels, channels)


def test_a_convolution_whose_weight_is_computed_keeps_the_layout_of_one_channel() -> None:
    last = Execution("float32", channels_last=True)
    conv = last.laid_out(nn.Conv2d(1, 4, 3))
    outputs = F.conv2d(last.inputs(torch.rand(2, 1, 8, 8)), 1.0 * conv.weight)
    assert outputs.stride()[1] == 1


def test_a_precision_that_was_asked_for_is_not_measured_against_others(mlp: nn.Module, blobs: Task) -> None:
    assert fastest_execution(mlp, blobs.example(8), blobs.loss, "bfloat16") == Execution("bfloat16", channels_last=False)


def test_bfloat16_trains_as_well(cnn: nn.Module, images: Task, run: Run) -> None:
    model = fit(cnn, images, Training(epochs=15, batch_size=20, lr=0.01, precision="bfloat16"), run)
    assert accuracy(model, images) > 0.85
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.is_contiguous() for parameter in model.parameters())


# Several techniques in one training.


def test_a_joint_training_prunes_each_part_in_its_own_way(mlp: nn.Sequential, blobs: Task, run: Run) -> None:
    joint = Joint(
        steps=(
            prune.Weights(sparsity=0.5, include=("0",), exclude=("*.bias",)),
            prune.Weights(sparsity=0.75, include=("2.weight",)),
        ),
        train=Training(epochs=3, batch_size=32, lr=0.01),
    )
    model = joint(mlp, blobs, run)
    assert int((model[0].weight == 0).sum()) == 64
    assert int((model[2].weight == 0).sum()) == 36
    assert int((mlp[0].weight == 0).sum()) == 0


def test_a_joint_training_refuses_what_cannot_join() -> None:
    from mirabelle import quantize

    with pytest.raises(UserError, match="does not act during training"):
        Joint(steps=(quantize.Static(),), train=Training(epochs=1))
    with pytest.raises(UserError, match="has its own training"):
        Joint(steps=(prune.Weights(sparsity=0.5, train=Training(epochs=1)),), train=Training(epochs=1))
    with pytest.raises(UserError, match="at least one step"):
        Joint(steps=(), train=Training(epochs=1))


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({}, "E111"),
        ({"epochs": 1, "steps": 1}, "E111"),
        ({"epochs": 0}, "E110"),
        ({"epochs": 1, "lr": 0.0}, "E110"),
        ({"epochs": 1, "momentum": 1.0}, "E110"),
        ({"epochs": 1, "batch_size": 0}, "E110"),
        ({"epochs": 1, "warmup": 1.0}, "E110"),
        ({"epochs": 1, "clip": 0.0}, "E110"),
        ({"epochs": 1, "patience": 0}, "E110"),
        ({"epochs": 1, "weight_decay": -1.0}, "E110"),
    ],
)
def test_settings_out_of_range_are_refused(settings: Mapping[str, Any], code: str) -> None:
    with pytest.raises(UserError) as caught:
        Training(**settings)
    assert caught.value.code == code


def test_samples_without_labels_learn_from_the_teacher_alone(mlp: nn.Module, blobs: Task, run: Run) -> None:
    few = blobs.replace(train=Samples(blobs.train.inputs[:6], blobs.train.targets[:6]))
    task = few.with_unlabelled(blobs.train.inputs[6:])
    assert (len(task.train), int((task.train.targets == -100).sum())) == (400, 394)
    torch.manual_seed(3)
    teacher = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    teacher = fit(teacher, blobs, Training(epochs=8, batch_size=32, lr=0.02), run.within("teacher"))
    training = Training(epochs=8, batch_size=32, lr=0.02, objective=0.5 * SoftTargets() + 0.5 * TaskLoss(), keep="last")
    student = fit(mlp, task.with_teacher(teacher), training, run.within("student"))
    assert accuracy(student, task) > 0.9
    with pytest.raises(UserError, match=r"E131.*have shapes \[\(7,\)\], the data \[\(8,\)\]"):
        few.with_unlabelled(torch.zeros(4, 7))
    bound = TaskLoss().bind(mlp, task, task.example())
    unknown = task.train.at(torch.arange(10, 20))
    assert float(bound(Forward(unknown, torch.randn(10, 3)))) == 0.0


def test_an_evaluation_keeps_no_graph_of_a_model_that_could_be_trained(mlp: nn.Module, blobs: Task) -> None:
    """Ten thousand images through a network in floating point would take tens of gigabytes."""
    outputs: list[torch.Tensor] = []

    def run(inputs: Any) -> Any:
        outputs.append(mlp(inputs))
        return outputs[-1]

    evaluation(run, blobs.test, blobs, (blobs.metric,))
    assert outputs
    assert not any(one.requires_grad for one in outputs)
