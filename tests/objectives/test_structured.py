"""Structured regularization: its value against plain loops over units, its gradient, and what a training with it leaves."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, Task, Training, prune
from mirabelle.errors import UserError
from mirabelle.model.state import fingerprint
from mirabelle.objectives import Forward, GroupLasso, Growing, Objective, TaskLoss, Term
from mirabelle.objectives.units import UnitSquares
from mirabelle.task.batch import Batch
from mirabelle.training import evaluate, fit


class Residual(nn.Module):
    """A residual block between a stem and a head, then attention with two heads over the rows of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.inner, self.outer = nn.Conv2d(6, 10, 3, padding=1), nn.Conv2d(10, 6, 3, padding=1)
        self.query, self.key, self.value = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.merge, self.head = nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.outer(self.inner(x).relu())).mean(3).transpose(1, 2)
        query, key, value = (
            layer(x).unflatten(2, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )  # fmt: skip
        read = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.head(self.merge(read).relu().mean(1))


@pytest.fixture
def net() -> Residual:
    torch.manual_seed(0)
    return Residual()


def parts_of(net: Residual) -> list[list[Tensor]]:
    """What each unit takes with it, written by hand."""
    stem = [
        [part[i] for layer in (net.stem, net.norm, net.outer) for part in (layer.weight, layer.bias)]
        + [layer.weight[:, i] for layer in (net.inner, net.query, net.key, net.value)]
        for i in range(6)
    ]
    inner = [[net.inner.weight[j], net.inner.bias[j], net.outer.weight[:, j]] for j in range(10)]
    projections = (net.query, net.key, net.value)
    heads = [
        [part[4 * h : 4 * h + 4] for layer in projections for part in (layer.weight, layer.bias)]
        + [net.merge.weight[:, 4 * h : 4 * h + 4]]
        for h in range(2)
    ]
    keys = [[part[d::4] for layer in projections[:2] for part in (layer.weight, layer.bias)] for d in range(4)]
    values = [[net.value.weight[d::4], net.value.bias[d::4], net.merge.weight[:, d::4]] for d in range(4)]
    merge = [[net.merge.weight[k], net.merge.bias[k], net.head.weight[:, k]] for k in range(5)]
    return [*stem, *inner, *heads, *keys, *values, *merge]


def value_of(term: Term, model: nn.Module, task: Task) -> Tensor:
    batch = task.example()
    return term.bind(model, task, batch)(Forward(batch, torch.zeros(0)))


def test_the_group_lasso_is_a_sum_over_units(net: Residual, images: Task) -> None:
    expected = sum(
        math.sqrt(sum(part.numel() for part in unit) * sum(float(part.detach().square().sum()) for part in unit))
        for unit in parts_of(net)
    )
    assert value_of(GroupLasso(), net, images).item() == pytest.approx(expected, rel=1e-5)
    assert len(UnitSquares(net, images, (), ())) == len(parts_of(net)) == 31


def test_a_growing_penalty_is_on_the_smallest_units_of_each_group(net: Residual, images: Task) -> None:
    sizes = [sum(float(part.detach().square().sum()) for part in unit) for unit in parts_of(net)]
    begin, expected = 0, 0.0
    for length in (6, 10, 2, 4, 4, 5):
        expected += sum(sorted(sizes[begin : begin + length])[: length // 2])
        begin += length
    term = Growing(sparsity=0.5, ceiling=2.0, initial=0.5, end=0.5)
    batch = images.example()
    bound = term.bind(net, images, batch)
    for progress, factor in ((0.0, 0.5), (0.25, 1.25), (0.5, 2.0), (1.0, 2.0)):
        assert term.factor(progress) == factor
        found = bound(Forward(batch, torch.zeros(0), progress=progress)).item()
        assert found == pytest.approx(0.5 * factor * expected, rel=1e-5)
    assert Growing(end=0.0).factor(0.0) == 1.0


def test_targets_and_ignore_choose_groups(net: Residual, images: Task) -> None:
    assert len(UnitSquares(net, images, ("inner.weight",), ())) == 16, "the stem's channels are read by it"
    assert len(UnitSquares(net, images, ("inner.weight",), ("stem",))) == 10
    unit = parts_of(net)[6]
    values = UnitSquares(net, images, (), ("stem", "query", "value", "merge"))()
    assert values[0].item() == pytest.approx(sum(float(part.detach().square().sum()) for part in unit), rel=1e-5)


@pytest.mark.parametrize("term", [GroupLasso(), Growing()], ids=lambda term: type(term).__name__)
def test_gradients_flow_and_zeros_have_none_that_is_not_finite(term: Term, net: Residual, images: Task) -> None:
    with torch.no_grad():
        for part in parts_of(net)[7]:
            part.zero_()
    before, state, training = fingerprint(net), torch.get_rng_state(), [module.training for module in net.modules()]
    value_of(term, net, images).backward()
    assert fingerprint(net) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in net.modules()] == training
    for name, parameter in net.named_parameters():
        if parameter.grad is not None:
            assert bool(torch.isfinite(parameter.grad).all()), name
    gradient = net.inner.weight.grad
    assert bool((gradient[0] != 0).any() or isinstance(term, Growing))


def trained(net: nn.Module, task: Task, objective: Objective, run: Run, epochs: int = 6) -> nn.Module:
    training = Training(epochs=epochs, batch_size=20, lr=0.01, precision="float32", keep="last", objective=objective)
    return fit(copy.deepcopy(net), task, training, run)


def test_a_training_with_the_group_lasso_ends_with_units_near_zero(net: Residual, images: Task, run: Run) -> None:
    plain = trained(net, images, 1.0 * TaskLoss(), run.within("plain"))
    drawn = trained(net, images, TaskLoss() + 3e-3 * GroupLasso(), run.within("drawn"))
    norms = [UnitSquares(model, images, (), ())().sqrt() for model in (plain, drawn)]
    assert int((norms[0] < 0.1 * norms[0].mean()).sum()) == 0
    assert int((norms[1] < 0.1 * norms[0].mean()).sum()) >= 5


@pytest.mark.slow
def test_what_a_growing_penalty_chose_can_be_cut_without_loss(net: Residual, images: Task, run: Run) -> None:
    term = Growing(sparsity=0.5, ceiling=1.0, end=0.6, exclude=("query", "merge"))
    model = trained(net, images, TaskLoss() + 3.0 * term, run.within("grown"), epochs=10)
    plain = trained(net, images, 1.0 * TaskLoss(), run.within("plain"), epochs=10)
    step = prune.Channels(sparsity=0.5, exclude=("query", "merge"))

    def moved(before: nn.Module) -> float:
        after = step(before, images, run).eval()
        inputs = images.test.inputs
        with torch.no_grad():
            return float((after(inputs) - before.eval()(inputs)).abs().mean())

    assert step(model, images, run).inner.out_channels == 5
    assert moved(model) < 0.2 * moved(plain)
    assert float(evaluate(model, images.test, images).mean()) > 0.8


@pytest.mark.slow
def test_a_training_that_goes_on_keeps_the_choice(net: Residual, images: Task, tmp_path: Path) -> None:
    term = Growing(sparsity=0.5)
    one, other = (term.bind(net, images, images.example()) for _ in range(2))
    assert torch.equal(one.to_go, other.to_go)
    assert list(one.state_dict()) == ["to_go"]
    with torch.no_grad():
        net.inner.weight[[unit - 6 for unit in one.to_go.tolist() if 6 <= unit < 16]] *= 50  # these would stay now
    again = term.bind(net, images, images.example())
    assert not torch.equal(one.to_go, again.to_go)
    again.load_state_dict(one.state_dict())
    record = Forward(images.example(), torch.zeros(0))
    assert torch.equal(again(record), one(record))


@pytest.mark.parametrize(
    ("term", "words"),
    [
        (GroupLasso(include=("inner.weigth",)), 'pattern "inner.weigth" matches nothing'),
        (Growing(exclude=("*",)), "no group of channels, neurons or heads is selected"),
        (Growing(sparsity=0.0), "no unit can be removed"),
    ],
)
def test_what_cannot_be_bound_is_told(term: Term, words: str, net: Residual, images: Task) -> None:
    with pytest.raises(UserError, match=f"E112.*{words}"):
        term.bind(net, images, Batch(images.test.inputs[:2], images.test.targets[:2]))


def test_the_factor_does_not_fall() -> None:
    with pytest.raises(UserError, match=r"E111.*initial must not exceed ceiling"):
        Growing(initial=2.0, ceiling=1.0)
