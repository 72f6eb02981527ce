"""Adaptive rounding: codes by what a layer gives are better than the nearest ones, and at most one step from them."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, Task, quantize
from mirabelle.model.watch import watch
from mirabelle.numerics import affine
from mirabelle.numerics.adaptive_rounding import adaptive_codes, output_error
from mirabelle.quantize import StaticLayer
from mirabelle.report import read_events
from mirabelle.task.samples import Samples


def correlated(rows: int, columns: int, count: int = 2000) -> tuple[Tensor, Tensor]:
    """(weight, (rows, columns); inputs, (count, columns)), whose columns go together, as those of images do."""
    torch.manual_seed(0)
    mixed = torch.randn(columns, columns) * torch.logspace(0, -1.5, columns)[:, None] / columns**0.5
    return torch.randn(rows, columns) / columns**0.5, (torch.randn(count, columns) @ mixed.T + 0.2).relu()


def moments_of(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return (x.T @ x / len(x))[None], (y.T @ x / len(x))[None]


@pytest.mark.parametrize(("bits", "share"), [(3, 0.75), (4, 0.55), (8, 0.6)])
def test_the_error_of_the_outputs_falls_and_codes_move_by_one_step_at_most(bits: int, share: float) -> None:
    weight, x = correlated(16, 48)
    high = 2 ** (bits - 1) - 1
    scale = affine.symmetric_scales(weight, high)[:, None]
    nearest = (weight / scale).round().clamp(-high, high)
    codes = adaptive_codes(weight[None], scale[None], high, *moments_of(x, x @ weight.T), steps=500)[0]
    before, after = (((x @ (one * scale - weight).T) ** 2).mean(0) for one in (nearest, codes))
    assert after.sum() < share * before.sum()
    assert (after <= before).all()
    assert (codes - nearest).abs().max() == 1
    assert codes.abs().max() <= high


def test_errors_of_inputs_are_made_up_for_and_zeros_stay_zero() -> None:
    weight, x = correlated(8, 24)
    weight[:, ::3] = 0.0
    rough = 0.9 * x  # as if a layer before gave too little
    scale = affine.symmetric_scales(weight, 7)[:, None]
    gram, cross = moments_of(rough, x @ weight.T)
    codes = adaptive_codes(weight[None], scale[None], 7, gram, cross, steps=500)
    nearest = (weight / scale).round().clamp(-7, 7)
    due = x @ weight.T
    before, after = (((rough @ (one * scale).T - due) ** 2).sum(1).mean() for one in (nearest, codes[0]))
    assert after < before
    assert not codes[0][:, ::3].any()


def test_codes_stay_where_nothing_is_gained() -> None:
    weight, x = torch.tensor([[1.0, -2.0, 3.0]]), torch.eye(3)
    codes = adaptive_codes(weight[None], torch.ones(1, 1, 1), 7, *moments_of(x, x @ weight.T), steps=50)
    assert torch.equal(codes[0], weight)


def test_the_error_is_that_of_the_outputs_in_every_group() -> None:
    generator = np.random.default_rng(0)
    x, y, w = (generator.normal(size=shape) for shape in ((2, 30, 4), (2, 30, 3), (2, 3, 4)))
    gram, cross = np.einsum("gnc,gnd->gcd", x, x) / 30, np.einsum("gnr,gnc->grc", y, x) / 30
    given = np.einsum("grc,gnc->gnr", w, x)
    expected = ((given - y) ** 2).mean(1) - (y**2).mean(1)
    assert np.allclose(output_error(*map(torch.from_numpy, (w, gram, cross))).numpy(), expected)


class Net(nn.Module):
    """A convolution with a norm, a depthwise and a grouped one, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 12, 3, stride=2, groups=2)
        self.hidden, self.head = nn.Linear(12, 16), nn.Linear(16, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = self.grouped(self.depthwise(x).relu()).relu().mean((2, 3))
        out: Tensor = self.head(self.hidden(x).relu())
        return out


def test_layers_and_the_whole_model_give_less_error_with_adaptive_codes(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.norm.weight.uniform_(0.5, 2.0)
    x = torch.randn(60, 3, 10, 10).cumsum(2) / 3
    task, before = Task(train=Samples(x), test=Samples(x)), copy.deepcopy(net.state_dict())
    plain = quantize.Static(weight_bits=4, samples=60)(net, task, run)
    fine = quantize.Static(weight_bits=4, samples=60, rounding="adaptive")(net, task, Run(tmp_path))
    again = quantize.Static(weight_bits=4, samples=60, rounding="adaptive")(net, task, Run(tmp_path / "again"))
    assert all(
        torch.equal(one, other) for one, other in zip(fine.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    (event,) = [one for one in read_events(tmp_path) if one["event"] == "adaptive rounding"]
    assert set(event["errors"]) == {"first", "depthwise", "grouped", "hidden", "head"}
    for name, layer in fine.named_modules():
        if isinstance(layer, StaticLayer):
            other = plain.get_submodule(name)
            assert torch.equal(layer.scale, other.scale)
            moved = (layer.codes.int() - other.codes.int()).abs()
            assert moved.max() <= 1
            assert moved.any(), name
    inputs: dict[str, Tensor] = {}
    watch(
        fine,
        [x],
        {name: fine.get_submodule(name) for name in event["errors"]},
        before=lambda run: inputs.__setitem__(run.name, run.input),
    )
    due: dict[str, Tensor] = {}
    behind = {name: net.get_submodule("norm" if name == "first" else name) for name in event["errors"]}
    watch(net, [x], behind, after=lambda run: due.__setitem__(run.name, run.output))
    for name in event["errors"]:  # the layer with either codes, on the inputs that it gets
        layer = copy.deepcopy(fine.get_submodule(name))
        with torch.no_grad():
            after = float((layer.before_rounding(inputs[name]) - due[name]).square().mean())
            layer.codes.copy_(plain.get_submodule(name).codes)
            before = float((layer.before_rounding(inputs[name]) - due[name]).square().mean())
        assert after < before, name
        assert after / before == pytest.approx(event["errors"][name], abs=0.1), name
    with torch.no_grad():
        whole = [float((one(x) - net(x)).square().mean()) for one in (plain, fine)]
    assert whole[1] < 0.7 * whole[0]


def test_a_preview_costs_no_rounding(run: Run) -> None:
    x = torch.randn(60, 3, 10, 10)
    task, step = Task(train=Samples(x), test=Samples(x)), quantize.Static(weight_bits=4, samples=60, rounding="adaptive")
    torch.manual_seed(0)
    net = Net().eval()
    plain = quantize.Static(weight_bits=4, samples=60)(net, task, run)
    assert torch.equal(step.preview(net, task, run).model.first.codes, plain.first.codes)
