"""Layers whose quantization hurts stay in floating point, until the measured change of the outputs is within a limit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, Task, quantize
from mirabelle.calibration.samples import CalibrationSamples
from mirabelle.errors import UserError
from mirabelle.quantize import StaticLayer
from mirabelle.quantize.bits import MixedBits
from mirabelle.quantize.output_change import OutputChange
from mirabelle.quantize.surroundings import Flow
from mirabelle.report import left_by_steps, read_events
from mirabelle.runtime.export import export
from mirabelle.runtime.onnxruntime import OnnxSession
from mirabelle.task.samples import Samples


class TwoHeads(nn.Module):
    """Scores near 0.01 and boxes near 100, with an addition between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.scores, self.boxes = nn.Linear(6, 2), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x).relu()
        x = (self.a(x) + x).relu()
        x = self.b(x).relu().mean((2, 3))
        return self.scores(x) * 0.01, self.boxes(x) * 100


@pytest.fixture
def unlabelled() -> Task:
    """Images whose first channel is a thousand times as large as the others."""
    x = torch.randn(80, 3, 9, 9, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e3, 1, 1]).reshape(3, 1, 1)
    return Task(train=Samples(x), test=Samples(x))


def spoiled() -> nn.Module:
    """A network whose first layer alone cannot be quantized on these images: it needs the small channels as much."""
    torch.manual_seed(0)
    net = TwoHeads().eval()
    with torch.no_grad():
        net.first.weight[:, 0] /= 1e3
    return net


def change_of(quantized: nn.Module, net: nn.Module, task: Task) -> float:
    """Σ (y − ŷ)² / Σ (y − ȳ)², the mean over the outputs."""
    x = task.test.inputs
    with torch.no_grad():
        pairs = zip(net(x), quantized(x), strict=True)
        return sum(float((y - z).square().sum() / (y - y.mean(0)).square().sum()) for y, z in pairs) / 2


def test_the_spoiled_layer_alone_stays_in_floating_point(unlabelled: Task, tmp_path: Path) -> None:
    net, run = spoiled(), Run(tmp_path)
    limit, plain = 0.01, quantize.Static(samples=80)
    assert change_of(plain(net, unlabelled, Run(tmp_path / "plain")), net, unlabelled) > 10 * limit
    small = quantize.Static(samples=80, max_damage=limit)(net, unlabelled, run)
    assert {name for name, one in small.named_modules() if isinstance(one, StaticLayer)} == {"a", "b", "scores", "boxes"}
    decided = json.loads(run.decided("floating"))
    assert list(decided["floating"]) == ["first"]
    assert decided["floating"]["first"] > 10 * limit
    assert change_of(small, net, unlabelled) == pytest.approx(decided["after"], rel=0.05)  # measured on the training part
    assert decided["after"] <= limit < decided["before"]
    (left,) = [one for one in left_by_steps(read_events(tmp_path)) if "first.weight" in one.what.names]
    assert "its quantization alone changes the outputs by" in left.what.why


def test_a_resumed_run_repeats_the_decision(unlabelled: Task, tmp_path: Path) -> None:
    net, run, step = spoiled(), Run(tmp_path), quantize.Static(samples=80, max_damage=0.01)
    first = step(net, unlabelled, run).state_dict()
    run.journal.decisions["floating"] = json.dumps({"floating": {"b": 0.5}, "before": 1.0, "after": 0.0})
    assert "first.codes" in step(net, unlabelled, run).state_dict()
    del run.journal.decisions["floating"]
    again = step(net, unlabelled, run).state_dict()
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], tensor) for name, tensor in again.items())


def test_within_the_limit_everything_is_quantized(unlabelled: Task, run: Run) -> None:
    step = quantize.Static(samples=80, max_damage=1e3)
    whole, plain = step(spoiled(), unlabelled, run), quantize.Static(samples=80)(spoiled(), unlabelled, run)
    assert whole.state_dict().keys() == plain.state_dict().keys()
    assert step.preview(spoiled(), unlabelled, run).description[-1].endswith("within max_damage = 1000")


def test_a_limit_that_nothing_meets_is_refused_with_what_remains(unlabelled: Task, run: Run) -> None:
    with pytest.raises(UserError, match=r"max_damage = 1e-12 cannot be met: with a single layer .* by \d") as caught:
        quantize.Static(samples=80, max_damage=1e-12)(spoiled(), unlabelled, run)
    assert caught.value.code == "E114"
    assert run.decided("floating") is None


def test_a_value_can_stay_in_floating_point_between_integer_layers(unlabelled: Task, run: Run) -> None:
    net = spoiled()
    flow, layers = Flow.of(net, unlabelled.example(), run), ["first", "a", "b", "scores", "boxes"]
    whole = flow.around(layers)
    (addition,) = [place for place in whole.places if "add" not in place and whole.inputs["b"] == place]
    assert set(whole.places) - set(flow.around(layers, [addition]).places) == {addition}
    assert "b" not in flow.around(layers, [addition]).inputs


def test_the_exported_file_gives_what_torch_gives(unlabelled: Task, run: Run) -> None:
    small = quantize.Static(samples=80, max_damage=0.01)(spoiled(), unlabelled, run)
    with torch.inference_mode():
        expected = small(unlabelled.test.inputs)
        given = OnnxSession(export(small, unlabelled.example()), 1).outputs_of([unlabelled.test.first(80)])[0]
    for one, other in zip(expected, given, strict=True):
        assert (one - other).abs().max() < 0.02 * one.abs().max()


def test_every_output_counts_alike() -> None:
    class Two(nn.Module):
        def __init__(self, error: float) -> None:
            super().__init__()
            self.error = error

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return 1e3 * x, x + self.error * x

    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    change = OutputChange(Two(0.0), CalibrationSamples.of([x]).for_model(Two(0.0)))
    spread = float(x.square().sum() / (x - x.mean(0)).square().sum())
    assert change.of(Two(0.2)) == pytest.approx(0.04 * spread / 2, rel=1e-4)
    assert change.of(Two(float("nan"))) == float("inf")


def test_a_size_and_a_limit_of_damage_contradict() -> None:
    with pytest.raises(UserError) as caught:
        quantize.Static(weight_bits=MixedBits(size="20%"), max_damage=0.1)
    assert caught.value.code == "E111"
