"""Cross-layer equalization: the same function in floating point, equal ranges on both sides of a channel."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mirabelle import Run, Task, quantize
from mirabelle.quantize.equalization import equalize
from mirabelle.quantize.surroundings import Flow, Pair
from mirabelle.task.batch import Batch
from mirabelle.task.samples import Samples


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 3, padding=1, groups=8)  # depthwise
        self.c = nn.Conv2d(8, 12, 3, groups=2)
        self.d, self.e = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 6, 1)
        self.f, self.g = nn.Linear(6, 10), nn.Linear(10, 10)
        self.h = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(functional.relu(self.norm(self.a(x))))
        x = self.c(functional.leaky_relu(x, 0.1))
        x = self.d(functional.max_pool2d(functional.pad(x, (1, 1, 1, 1)), 2))
        x = self.e(functional.relu6(x)) + x  # two read d, and relu6 is between
        x = self.f(x.mean((2, 3)))
        x = self.g(torch.sigmoid(x))
        out: Tensor = self.h(torch.relu(x))
        return out


PAIRS = {("a", "norm", "b"), ("b", None, "c"), ("c", None, "d"), ("g", None, "h")}


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        for name in ("norm.running_mean", "norm.weight", "norm.bias"):
            net.state_dict()[name].normal_()
        net.norm.running_var.uniform_(0.1, 3.0)
    return net


def pairs_of(net: nn.Module, x: Tensor, run: Run) -> tuple[Pair, ...]:
    layers = [name for name, one in net.named_modules() if isinstance(one, (nn.Conv2d, nn.Linear))]
    return Flow.of(net, Batch(x, torch.zeros(len(x))), run, pairs=True).pairs(layers)


def test_pairs_are_layers_with_nothing_but_scalable_functions_between(net: nn.Module, run: Run) -> None:
    found = pairs_of(net, torch.randn(2, 3, 12, 12), run)
    assert {(pair.first, pair.norm, pair.second) for pair in found} == PAIRS


def test_channels_that_others_read_or_that_move_are_in_no_pair(run: Run) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(4, 6, 1), nn.Linear(5, 5)  # reads positions, not channels
            self.c, self.d = nn.Linear(5, 8), nn.Linear(4, 3)  # pools over its features
            self.e = nn.Linear(3, 3)
            self.f = nn.Linear(3, 3)
            self.e.bias = self.f.bias

        def forward(self, x: Tensor) -> Tensor:
            x = functional.max_pool1d(self.c(self.b(self.a(x))), 2)
            out: Tensor = self.f(self.e(self.d(x).relu() + 1.0).relu())
            return out

    found = pairs_of(Odd().eval(), torch.randn(2, 4, 5), run)
    assert [(pair.first, pair.second) for pair in found] == [("b", "c")]


def test_the_function_stays_and_the_ranges_are_equal(net: nn.Module, run: Run) -> None:
    x = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    even = copy.deepcopy(net)
    scales = equalize(even, pairs_of(net, x, run))
    assert {key for key, one in scales.items() if (one.log().abs() > 0.1).any()} == {(one, other) for one, _, other in PAIRS}
    with torch.no_grad():
        assert torch.allclose(even(x), net(x), rtol=1e-4, atol=1e-5)
        weights = {name: one.weight.double().numpy() for name, one in even.named_modules() if hasattr(one, "weight")}
    norm = even.norm
    folded = weights["a"] * (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().double().numpy()[:, None, None, None]
    made = [np.abs(w).reshape(len(w), -1).max(1) for w in (folded, weights["b"], weights["c"], weights["g"])]
    by_group = np.abs(weights["c"]).reshape(2, 6, 4, -1).max((1, 3)).reshape(-1)
    read = [
        np.abs(weights["b"]).reshape(8, -1).max(1), by_group,
        np.abs(weights["d"]).max((0, 2, 3)), np.abs(weights["h"]).max(0),
    ]  # fmt: skip
    for one, other in zip(made, read, strict=True):
        assert np.allclose(one, other, rtol=0.01)


def test_one_pair_has_the_scale_of_the_paper(run: Run) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    with torch.no_grad():
        net[2].weight[:, 1] = 0.0
        net[0].weight[3] = 0.0
    one, other = (np.abs(net[k].weight.detach().double().numpy()).max(1 - k // 2) for k in (0, 2))
    found = equalize(net, pairs_of(net, torch.randn(2, 3), run))[("0", "2")].numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.sqrt(one * other) / other
    assert np.allclose(np.delete(found, [1, 3]), np.delete(expected, [1, 3]), rtol=1e-6)
    assert found[[1, 3]].tolist() == [1.0, 1.0], "a channel of zeros keeps its scale"


def test_weights_with_one_scale_gain_where_channels_differ(run: Run) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)
    ).eval()
    unequal = torch.logspace(-2, 2, 16)
    with torch.no_grad():
        net[1].weight.copy_(unequal)
        net[3].weight /= unequal[None, :, None, None]
    x = torch.randn(60, 3, 9, 9)
    task = Task(train=Samples(x), test=Samples(x))
    with torch.no_grad():
        due = net(x)
        plain, even = (
            quantize.Static(samples=60, per_channel=False, equalize=on)(net, task, run.within(str(on))) for on in (False, True)
        )
        errors = [float((one(x) - due).square().mean() / due.square().mean()) for one in (plain, even)]
    assert errors[0] > 0.05
    assert errors[1] < 0.01 * errors[0]


def test_the_model_that_is_given_stays_as_it_is(net: nn.Module, run: Run) -> None:
    x = torch.randn(40, 3, 12, 12)
    before = copy.deepcopy(net.state_dict())
    quantize.Static(samples=40, equalize=True)(net, Task(train=Samples(x), test=Samples(x)), run)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
