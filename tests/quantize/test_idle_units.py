"""Units that do nothing lose their weights: which ones, and that no output changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mirabelle import Run, Task, Training, quantize
from mirabelle.quantize.codebook_layer import CodebookLayer
from mirabelle.quantize.idle_units import silenced
from mirabelle.quantize.rounded_layer import RoundedLayer
from mirabelle.run.journal import read_events


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(5 * 16, 9), nn.ReLU(), nn.Linear(9, 3),
    ).eval()  # fmt: skip


@torch.no_grad()
def test_a_unit_that_nobody_reads_loses_its_weights_and_its_bias() -> None:
    model, inputs = network(), torch.randn(7, 1, 8, 8)
    model[3].weight[:, 2] = 0  # nobody reads channel 2 of the first convolution
    model[6].weight[:, 16:32] = 0  # nor channel 1 of the second, 16 places behind the Flatten
    due = model(inputs)
    found = silenced(model, ["0", "3", "6", "8"], inputs)
    assert found == {"0.weight": 9, "0.bias": 1, "3.weight": 5 * 9, "3.bias": 1}
    assert not model[0].weight[2].any()
    assert not model[3].weight[1].any()
    assert torch.equal(model(inputs), due)


@torch.no_grad()
def test_a_unit_that_is_zero_for_every_input_is_not_read() -> None:
    model, inputs = network(), torch.randn(7, 1, 8, 8)
    model[3].weight[4], model[3].bias[4] = 0, -0.5
    model[6].weight[3], model[6].bias[3] = 0, -0.1
    due = model(inputs)
    found = silenced(model, ["0", "3", "6", "8"], inputs)
    assert found == {"3.bias": 1, "6.weight": 16 * 8, "6.bias": 1, "8.weight": 3}
    assert torch.equal(model(inputs), due)


@torch.no_grad()
def test_a_constant_that_is_read_stays() -> None:
    model, inputs = network(), torch.randn(7, 1, 8, 8)
    model[6].weight[3], model[6].bias[3] = 0, 0.5
    assert silenced(model, ["0", "3", "6", "8"], inputs) == {}
    assert model[8].weight[:, 3].all()


@torch.no_grad()
def test_units_fall_idle_one_after_the_other() -> None:
    model, inputs = network(), torch.randn(7, 1, 8, 8)
    model[8].weight.zero_()
    due = model(inputs)
    silenced(model, ["0", "3", "6", "8"], inputs)
    assert not any(bool(model[place].weight.any()) for place in (0, 3, 6))
    assert model[8].bias.all()
    assert torch.equal(model(inputs), due)


class Branches(nn.Module):
    """A sum of two branches, a depthwise convolution, and a norm over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 1)
        self.depthwise, self.norm = nn.Conv2d(4, 4, 3, groups=4), nn.GroupNorm(1, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.one(x) + self.two(x))
        return self.head(self.norm(self.depthwise(x)).mean((2, 3)))


@torch.no_grad()
def test_what_reads_units_in_another_way_leaves_them_alone() -> None:
    torch.manual_seed(0)
    model, inputs = Branches().eval(), torch.randn(7, 1, 8, 8)
    model.head.weight[:, 1] = 0  # the norm still reads the channel
    model.one.weight[2] = 0  # the other branch still writes it
    due = model(inputs)
    assert silenced(model, ["one", "two", "head"], inputs) == {}
    assert torch.equal(model(inputs), due)


class Read(nn.Module):
    """Units of `a` that `b` reads behind or beside something else."""

    def __init__(self, between: Callable[[torch.Tensor, torch.Tensor, nn.Module], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(5, 6), nn.Linear(6, 3), between
        self.slope = nn.PReLU(init=0.0)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.between(self.a(x), other, self)


ELSEWHERE: dict[str, Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]] = {
    "sum": lambda h, _, m: m.b(h) + h.sum(-1, keepdim=True),
    "product": lambda h, _, m: m.b(h) + torch.einsum("bi,bi->b", h, h)[:, None],
    "norm": lambda h, _, m: m.b(h) + h.norm(),
    "layer norm without weights": lambda h, _, m: m.b(F.layer_norm(h, (6,))),
    "output": lambda h, _, m: torch.cat([m.b(h), h], 1),
    "attention": lambda h, _, m: m.b((h @ h.T).softmax(-1) @ h),
    "called twice": lambda h, x, m: m.b(h) + m.b(torch.relu(m.a(-x))),
    "a weight by itself": lambda h, x, m: m.b(h) + F.linear(x, m.a.weight, m.a.bias)[:, :3],
}
DEPENDING: dict[str, Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]] = {
    "product with an input": lambda h, g, m: m.b(torch.relu(h * g.sum(1, keepdim=True))),
    "sum with an input": lambda h, g, m: m.b(torch.relu(h + g.mean(1, keepdim=True))),
    "a slope that learns": lambda h, _, m: m.b(m.slope(h)),
    "a mask": lambda h, g, m: m.b(h.masked_fill(g[:, :1] > -9, 0.0)),
}


@torch.no_grad()
@pytest.mark.parametrize("how", ELSEWHERE)
def test_a_unit_that_something_else_reads_is_not_idle(how: str) -> None:
    torch.manual_seed(0)
    model, inputs = Read(ELSEWHERE[how]).eval(), (torch.randn(7, 5), torch.randn(7, 5))
    model.b.weight[:, 2] = 0
    due = model(*inputs)
    assert silenced(model, ["a", "b"], inputs) == {}
    assert torch.equal(model(*inputs), due)


@torch.no_grad()
@pytest.mark.parametrize("how", DEPENDING)
def test_a_unit_that_is_zero_for_one_input_alone_is_not_idle(how: str) -> None:
    torch.manual_seed(0)
    model, inputs = Read(DEPENDING[how]).eval(), (torch.randn(7, 5), torch.ones(7, 5))
    model.a.weight[2], model.a.bias[2] = 0, -0.3
    assert silenced(model, ["a", "b"], inputs) == {}
    assert model.b.weight[:, 2].all()


@torch.no_grad()
def test_layers_that_are_not_named_are_left_alone() -> None:
    model, inputs = network(), torch.randn(7, 1, 8, 8)
    model[8].weight.zero_()
    assert silenced(model, ["0", "3", "8"], inputs) == {}


def test_a_model_that_cannot_be_traced_is_left_alone() -> None:
    class Odd(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x if float(x.sum()) > 0 else -x)  # type: ignore[no-any-return]

    model = Odd(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    with torch.no_grad():
        model[2].weight.zero_()
    assert silenced(model, ["0", "2"], torch.randn(7, 4)) == {}
    assert model[0].weight.all()


@pytest.mark.parametrize("width", [40])
def test_a_training_by_bits_ends_without_idle_weights(width: int, stripes: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 3))
    run = Run(tmp_path)
    step = quantize.EntropyConstrained(rate=3.0, train=Training(epochs=8, lr=5e-3, batch_size=32, precision="float32"))
    small = step(dense, stripes, run)
    first, last = small[1], small[3]
    assert isinstance(first, CodebookLayer)
    assert isinstance(last, CodebookLayer)
    read = (last.codes != 0).any(0)
    written = (first.codes != 0).any(1)
    assert first.bias is not None
    assert not (first.codes[~read] != 0).any()
    assert not first.bias[~read].any()
    assert not (read & ~written & (first.bias <= 0)).any()
    told = [event for event in read_events(tmp_path) if event["event"] == "idle units"]
    assert told
    assert all(sum(event["cleared"].values()) > 0 for event in told)


def test_only_idle_units_lose_their_weights_while_the_training_goes_on(stripes: Task, tmp_path: Path) -> None:
    """A weight that rounds to 0 keeps what it has learned, so that it may return."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 3))
    step = quantize.EntropyConstrained(rate=1.0, train=Training(epochs=1))
    prepared = step.prepare(dense, stripes, Run(tmp_path))
    first, last = prepared.model.get_submodule("1"), prepared.model.get_submodule("3")
    assert isinstance(first, RoundedLayer)
    assert isinstance(last, RoundedLayer)
    assert first.bias is not None
    with torch.no_grad():
        last.weight[:, 7] = 0.0  # nobody reads unit 7
    before, bias = first.weight.detach().clone(), first.bias.detach().clone()
    small = first.rounded()[0] == 0
    assert small.any()
    _, clearing = prepared.controls(prepared.model)
    assert clearing(prepared.model, 0.4) is False
    assert torch.equal(first.weight, before)
    clearing(prepared.model, 0.5)
    others = (last.rounded()[0] != 0).any(0) & (first.rounded()[0] != 0).any(1)
    assert others.sum() > 10
    assert not others[7]
    assert torch.equal(first.weight[others], before[others])
    assert torch.equal(first.bias[others], bias[others])
    assert not first.rounded()[0][7].any()
    assert torch.equal(first.weight[7][small[7]], before[7][small[7]])
