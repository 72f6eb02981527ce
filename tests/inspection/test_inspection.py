"""Groups in words, and what each part is worth: held against hand-made cuts."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle import Run, Task, UserError, prune
from mirabelle.inspection import sensitivity_of, structure_of
from mirabelle.task.batch import Batch


class Attention(nn.Module):
    """Six heads of width 4 with a skip, by one operator or written out, with shared keys and values or not."""

    def __init__(self, *, written: bool = False, shared: str = "") -> None:
        super().__init__()
        self.first = nn.Linear(5, 12)
        self.q, self.k, self.v = nn.Linear(12, 24), nn.Linear(12, 8 if shared else 24), nn.Linear(12, 8 if shared else 24)
        self.out, self.last = nn.Linear(24, 12), nn.Linear(12, 2)
        self.written, self.shared = written, shared

    def forward(self, inputs: Tensor) -> Tensor:
        stream = self.first(inputs)
        q, k, v = (part(stream).unflatten(-1, (-1, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        if self.shared == "repeated":
            k, v = (part.repeat_interleave(3, dim=1) for part in (k, v))
        elif self.shared:
            k, v = (part.unsqueeze(2).expand(-1, -1, 3, -1, -1).flatten(1, 2) for part in (k, v))
        if self.written:
            mixed = F.dropout(torch.softmax(q @ k.transpose(2, 3) / 2 + 0.0, dim=-1), 0.1, self.training) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.last((stream + self.out(mixed.transpose(1, 2).flatten(2))).mean(1))


class Gelu(nn.Module):
    """x is added to x³, which is no residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(5, 7), nn.Linear(7, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.one(inputs)
        return self.other(torch.tanh(hidden + hidden**3))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = nn.LSTM(5, 6, bidirectional=True, batch_first=True), nn.Linear(12, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.cell(inputs)[0].mean(1))


HEADS = {
    "features of a residual stream",
    "heads of attention",
    "dimensions of queries and keys in each head",
    "dimensions of values in each head",
}
GROUPED = (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 12, 1, groups=12), nn.Conv2d(12, 2, 1))


@pytest.mark.parametrize(
    ("model", "shape", "kinds"),
    [
        (Attention(), (7, 5), HEADS),
        (Attention(written=True), (7, 5), HEADS),
        (Attention(shared="repeated"), (7, 5), (HEADS - {"heads of attention"}) | {"sets of heads of attention"}),
        (
            Attention(shared="expanded"),
            (7, 5),
            (HEADS - {"heads of attention"}) | {"key-value groups of attention", "queries in each key-value group"},
        ),
        (Gelu(), (5,), {"neurons of a layer"}),
        (Recurrent(), (7, 5), {"hidden units of a recurrent layer"}),
        (nn.Sequential(*GROUPED), (3, 9, 9), {"groups of a convolution", "channels in each group of a convolution", "units"}),
        (nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1)), (3, 9, 9), {"channels of a convolution"}),
    ],
    ids=["attention", "written out", "repeated keys", "expanded keys", "gelu", "lstm", "grouped", "convolution"],
)
def test_units_are_named_for_what_they_are(model: nn.Module, shape: tuple[int, ...], kinds: set[str]) -> None:
    structure = structure_of(model, Batch(torch.randn(2, *shape), torch.zeros(2)))
    assert {group.kind for group in structure.groups} == kinds
    structure.check_any_group()


def test_what_is_frozen_says_why_in_words() -> None:
    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.last = nn.Embedding(9, 6), nn.Linear(6, 2)

        def forward(self, words: Tensor) -> Tensor:
            return self.last(torch.cummax(self.table(words), dim=-1).values.sum(1))

    structure = structure_of(Looked(), Batch(torch.ones(2, 5, dtype=torch.long), torch.zeros(2)))
    reasons = {(fixed.name, fixed.dimension): fixed.reasons for fixed in structure.fixed}
    assert reasons["table.weight", 0] == ("any row of the table may be looked up",)
    assert reasons["last.bias", 0] == ("it is an output of the model",)
    assert "cummax" in str(reasons["table.weight", 1])
    with pytest.raises(UserError, match="no channel, neuron or head can be removed") as raised:
        structure.check_any_group()
    assert raised.value.code == "E112"


@pytest.fixture(scope="module")
def judged() -> tuple[nn.Module, Task]:
    """A small network on 257 validation samples: two batches, the last one filled up."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(600, 6, generator=generator)
    y = (x[:, 0] + x[:, 1] ** 2 > 0.5).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 2))
    task = Task(train=(x[:300], y[:300]), validation=(x[300:557], y[300:557]), test=(x[557:], y[557:]))
    return model.train(), task.replace(test=None)  # nobody looks at it


def loss_of(model: nn.Module, task: Task) -> float:
    with torch.no_grad():
        return float(task.loss(model.eval()(task.validation.inputs), task.validation.targets))


def test_every_point_is_the_loss_of_the_model_with_that_part_gone(judged: tuple[nn.Module, Task], run: Run) -> None:
    model, task = judged
    before = copy.deepcopy(model.state_dict())
    heard: list[tuple[int, int]] = []
    found = sensitivity_of(model, task, sparsities=(0.9, 0.5), progress=lambda done, total, _: heard.append((done, total)))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (heard[0], heard[-1], len(heard)) == ((0, 6), (6, 6), 7)
    assert (found.samples, found.metric_name) == (257, "accuracy")
    assert found.loss == pytest.approx(loss_of(copy.deepcopy(model), task), rel=1e-5)
    assert [curve.cost for curve in found.curves] == sorted(curve.cost for curve in found.curves)
    curves = {(curve.part, curve.name): curve for curve in found.curves}
    assert set(curves) == {("group", "0.weight:0"), ("layer", "0.weight"), ("layer", "3.weight")}
    for (part, name), curve in curves.items():
        assert [point.sparsity for point in curve.points] == [0.5, 0.9]
        for point in curve.points:
            assert point.removed == math.floor(point.sparsity * curve.size)
            step = prune.Weights(sparsity=point.sparsity, include=(name,))
            smaller = step(model, task, run) if part == "layer" else prune.Channels(sparsity=point.sparsity)(model, task, run)
            assert point.loss == pytest.approx(loss_of(smaller, task), rel=1e-4)


def test_directions_of_a_recurrence_are_measured_one_at_a_time(run: Run) -> None:
    x = torch.randn(60, 7, 5)
    task = Task(train=(x, torch.arange(60) % 2), test=(x, torch.arange(60) % 2))
    torch.manual_seed(0)
    model = Recurrent()
    found = sensitivity_of(model, task, sparsities=(0.5,))
    (forward,) = [curve for curve in found.curves if curve.name == "cell.weight_ih_l0:0"]
    score = sum(
        part.detach().square().reshape(4, 6, -1).sum((0, 2)) for part in (model.cell.weight_ih_l0, model.cell.weight_hh_l0)
    )
    score = score + model.cell.weight_hh_l0.detach().square().sum(0) + model.last.weight.detach()[:, :6].square().sum(0)
    gone = score.argsort()[:3]
    masked = copy.deepcopy(model)
    with torch.no_grad():
        masked.cell.weight_hh_l0[:, gone] = 0
        masked.last.weight[:, gone] = 0
    assert forward.points[0].loss == pytest.approx(loss_of(masked, task), rel=1e-5)


def test_what_cannot_be_measured_is_refused(judged: tuple[nn.Module, Task]) -> None:
    model, task = judged
    for settings, code in (({"sparsities": (1.0,)}, "E110"), ({"sparsities": ()}, "E110"), ({"samples": 0}, "E110")):
        with pytest.raises(UserError) as raised:
            sensitivity_of(model, task, **settings)
        assert raised.value.code == code
    with pytest.raises(UserError, match="neither a group of units nor a weight"):
        sensitivity_of(nn.BatchNorm1d(6), task)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken[0].bias.fill_(math.inf)
    with pytest.raises(UserError, match="loss of the unchanged model"):
        sensitivity_of(broken, task, groups=False)


def test_a_model_that_breaks_without_a_part_costs_without_end(judged: tuple[nn.Module, Task]) -> None:
    _, task = judged

    class Divides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.last = nn.Parameter(torch.full((2, 3), 0.5)), nn.Linear(6, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.last(inputs) / self.scale.min()

    found = sensitivity_of(Divides(), task, sparsities=(0.5,), groups=False)
    assert [curve.name for curve in found.curves] == ["last.weight", "scale"]
    assert found.curves[-1].cost == math.inf
    assert found.to_data()["curves"][-1]["points"][0]["loss"] is None
