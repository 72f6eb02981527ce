"""The last batch of a loader may have one sample, which batch norm cannot be trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mirabelle
from mirabelle import Run, Task, Training, prune
from mirabelle.errors import UserError
from mirabelle.job.dry_run import JobPlan
from mirabelle.job.forecast import forecast
from mirabelle.objectives.review import ProjectedFusion
from mirabelle.recipe import Recipe
from mirabelle.task.goal import Goal
from mirabelle.task.samples import Stream
from mirabelle.training import fit

X = torch.randn(97, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
REFUSED = "Expected more than 1 value per channel"


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


def task_of(train: Any) -> Task:
    return Task(train=train, validation=(X[65:81], Y[65:81]), test=(X[81:], Y[81:]))


def loader(count: int = 65, **settings: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X[:count], Y[:count]), **({"batch_size": 16, "shuffle": True} | settings))


def told(run: Run, kind: str) -> list[dict[str, Any]]:
    events = map(json.loads, (run.journal.folder / "events.jsonl").read_text("utf-8").splitlines())
    return [event for event in events if event["event"] == kind]


class Sizes:
    """A batch sampler whose batches have these sizes."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(sum(self.sizes)).tolist()
        for size in self.sizes:
            yield [order.pop() for _ in range(size)]


class Watched(nn.Module):
    """Notes the sizes of the batches on which it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.sizes = net(), []

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.sizes.append(len(x))
        return self.inner(x)


PLAIN = {"precision": "float32", "batch_size": 16}


@pytest.mark.parametrize(
    ("data", "sizes"),
    [
        (loader, [16, 16, 16, 16]),
        (lambda: loader(drop_last=True), [16, 16, 16, 16]),
        (lambda: loader(66), [16, 16, 16, 16, 2]),
        (lambda: DataLoader(TensorDataset(X, Y), batch_sampler=Sizes(1, 8, 1, 8)), [8, 8]),
        (lambda: (X[:65], Y[:65]), [16, 16, 16, 16]),
        (lambda: (X[:2], Y[:2]), [2]),
    ],
    ids=["shuffled", "drop_last", "last of two", "own sampler", "tensors", "two samples"],
)
def test_what_cannot_be_trained_is_left_out(data: Any, sizes: list[int], run: Run) -> None:
    model = Watched()
    fit(model, task_of(data()), Training(epochs=3, **PLAIN), run)
    assert model.sizes == sizes * 3
    epochs = told(run, "epoch")
    assert [event["epoch"] for event in epochs] == [1, 2, 3]
    assert all(0.2 < event["loss"] < 1.5 for event in epochs), "the mean over the batches that were trained"
    single = isinstance(data(), DataLoader) and sum(sizes) in (64, 16) and not getattr(data(), "drop_last", False)
    texts = [event["text"] for event in told(run, "warning")]
    assert sum("batches of a single sample are left out" in text and REFUSED in text for text in texts) == int(single)


def test_a_sample_that_can_be_trained_alone_is_trained(run: Run) -> None:
    model = Watched()
    model.inner[1] = nn.LayerNorm(16)
    fit(model, task_of(loader()), Training(epochs=1, **PLAIN), run)
    assert model.sizes == [16, 16, 16, 16, 1]
    maps = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(16, 2))
    fit(maps, task_of(loader()), Training(epochs=1, **PLAIN), Run(run.folder / "maps"))
    assert int(maps[2].num_batches_tracked) == 5, "four positions have a variance"


def test_a_schedule_ends_though_the_last_batch_is_left_out(tmp_path: Path) -> None:
    step = prune.Weights(sparsity=0.75, include=("0.weight",), train=Training(epochs=2, **PLAIN))
    pruned = step(net(), task_of(loader()), Run(tmp_path))
    assert float((pruned[0].weight == 0).float().mean()) == pytest.approx(0.75)


@pytest.mark.parametrize(
    "data",
    [
        lambda: (X[:1], Y[:1]),
        lambda: loader(1),
        lambda: loader(batch_size=1),
        lambda: DataLoader(TensorDataset(X, Y), batch_sampler=Sizes(1, 1, 1)),
    ],
    ids=["one sample", "one sample in a loader", "batches of one", "own sampler"],
)
def test_a_training_of_single_samples_is_refused_before_anything_is_learned(data: Any, run: Run) -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=f"E121.*every training batch has one sample.*{REFUSED}"):
        fit(model, task_of(data()), Training(epochs=2, **PLAIN), run)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(UserError, match=f"E121.*every training batch has one sample.*{REFUSED}"):
        fit(net(), task_of((X[:65], Y[:65])), Training(epochs=2, batch_size=1), run)


@pytest.mark.parametrize("data", [lambda: (X[:1], Y[:1]), lambda: loader(batch_size=1)], ids=["one sample", "batches of one"])
def test_a_run_of_single_samples_is_refused_in_one_line(data: Any, tmp_path: Path) -> None:
    steps = [prune.Channels(sparsity=0.5, train=Training(epochs=2, batch_size=16))]
    with pytest.raises(UserError, match=f"E121.*every training batch has one sample.*{REFUSED}"):
        mirabelle.compress(net(), task_of(data()), steps, out=tmp_path)
    assert not list(tmp_path.glob("steps/*"))


def test_a_whole_run_and_its_forecast_say_what_is_left_out(tmp_path: Path) -> None:
    steps, task = [prune.Channels(sparsity=0.5, train=Training(epochs=6, lr=0.02, batch_size=16))], task_of(loader())
    baseline = Training(epochs=6, lr=0.02, batch_size=16)
    plan = JobPlan(model=net(), task=task, recipe=Recipe(steps), goal=Goal(), baseline=baseline)
    remarks = [one for one in forecast(plan).remarks if "left out of the training" in one]
    why = f"{REFUSED} when training, got input size torch.Size([1, 16])"
    assert remarks == [f"The last batch of each epoch has one sample and is left out of the training: {why}."]
    result = mirabelle.compress(net(), task, steps, out=tmp_path, baseline=baseline)
    assert result.profile.metric is not None
    assert result.profile.metric.value > 0.6


@pytest.mark.parametrize(
    ("settings", "known"),
    [
        ({}, True),
        ({"drop_last": True}, False),
        ({"batch_size": 13}, False),
        ({"batch_size": 1}, False),
        ({"batch_size": None}, False),
    ],
)
def test_a_loader_says_whether_it_ends_with_one(settings: dict[str, Any], *, known: bool) -> None:
    assert Stream(loader(**settings)).ends_with_one is known


def test_norms_of_ours_take_a_single_value_by_their_running_statistics() -> None:
    """As the deepest map of ReviewKD in a loop of one's own, whose last batch has one sample."""
    torch.manual_seed(0)
    fusion = ProjectedFusion(3, 4, 2, deepest=True)
    for _ in range(50):
        fusion(torch.randn(8, 3, 1, 1), None)
    x = torch.randn(1, 3, 1, 1, requires_grad=True)
    found = fusion(x, None)[0]
    assert torch.equal(found, fusion.eval()(x, None)[0])
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
