"""Quantization after the training by bits and changes of the outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, Task, Training, compress, load, prune, quantize
from mirabelle.artifact.mira import pack
from mirabelle.artifact.tensor_costs import costs_of
from mirabelle.calibration.samples import CalibrationSamples
from mirabelle.errors import UserError
from mirabelle.quantize.codebook_layer import CodebookLayer
from mirabelle.quantize.output_change import OutputChange
from mirabelle.run.journal import read_events
from mirabelle.runtime.export import export
from mirabelle.training import fit


@pytest.fixture(scope="module")
def dense(stripes: Task, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 3),
    ]
    train = Training(epochs=15, batch_size=40, lr=3e-3, precision="float32")
    return fit(nn.Sequential(*layers), stripes, train, Run(tmp_path_factory.mktemp("dense"))).eval()


def change(before: nn.Module, after: nn.Module, task: Task) -> float:
    return OutputChange(before, CalibrationSamples.of([task.test.inputs]).for_model(before)).of(after)  # type: ignore[list-item]


def test_a_size_is_met_in_the_file(dense: nn.Module, stripes: Task, tmp_path: Path) -> None:
    small = quantize.RateDistortion(size="10%")(dense, stripes, Run(tmp_path))
    costs = costs_of(pack(export(small, stripes.example())))
    stored = sum(one.size_bytes for one in costs.tensors if one.name.endswith((".codes", ".values", ".weight")))
    whole = 4 * (72 + 8 * 4 * 9 + 3 * 128)
    assert 0.08 * whole < stored < 0.103 * whole
    assert change(dense, small, stripes) < 0.02
    assert not [module for module in small.modules() if isinstance(module, nn.BatchNorm2d)]


def test_the_change_that_was_asked_for_is_measured_and_costs_more_where_less_is_allowed(
    dense: nn.Module, stripes: Task, tmp_path: Path
) -> None:
    sizes = []
    for limit in (0.05, 0.002):
        run = Run(tmp_path / str(limit))
        small = quantize.RateDistortion(max_damage=limit)(dense, stripes, run)
        last = [event for event in read_events(run.folder) if event["event"] == "levels"][-1]
        assert last["max_damage"] <= limit
        assert change(dense, small, stripes) < 1.5 * limit  # on all samples
        sizes.append(last["size"])
    assert sizes[0] < 0.8 * sizes[1]


def test_mean_outputs_stay(dense: nn.Module, stripes: Task, tmp_path: Path) -> None:
    small = quantize.RateDistortion(size="5%", samples=400)(dense, stripes, Run(tmp_path))
    with torch.no_grad():
        due, own = dense(stripes.test.inputs), small(stripes.test.inputs)
    assert float((due - own).abs().max()) > 0.2  # of a size at which outputs change
    assert float((due.mean(0) - own.mean(0)).abs().max()) < 0.1 * float(due.std())


def test_pruned_weights_stay_and_the_result_is_loaded_again(dense: nn.Module, stripes: Task, tmp_path: Path) -> None:
    steps = [prune.Weights(sparsity=0.5, exclude=("0",)), quantize.RateDistortion(size="10%")]
    result = compress(dense, stripes, steps, out=tmp_path / "run")
    assert all(gate.passed for gate in result.gates.values())
    loaded = load(dense, tmp_path / "run")
    layers = {name: one for name, one in loaded.named_modules() if isinstance(one, CodebookLayer)}
    assert sorted(layers) == ["0", "3", "6"]
    assert float((layers["6"].codes == 0).float().mean()) >= 0.49
    torch.testing.assert_close(loaded(stripes.test.inputs), result.model(stripes.test.inputs), rtol=0, atol=0)


class Tied(nn.Module):
    """An embedding whose weight is that of the last layer, and a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.twice, self.last = nn.Embedding(30, 12), nn.Linear(12, 12), nn.Linear(12, 30)
        self.last.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.last(self.twice(self.twice(self.table(tokens)).relu()).mean(1))  # type: ignore[no-any-return]


def test_tied_weights_and_layers_that_run_twice_are_rounded_without_their_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, tokens = Tied().eval(), torch.randint(0, 30, (200, 6))
    task = Task(train=(tokens, tokens[:, 0]), test=(tokens, tokens[:, 0]))
    run = Run(tmp_path)
    small: Any = quantize.RateDistortion(max_damage=0.01)(model, task, run)
    assert small.table.codes is small.last.codes
    assert isinstance(small.twice, CodebookLayer)
    assert change(model, small, task) < 0.015
    told = next(event for event in read_events(run.folder) if event["event"] == "calibrated")
    assert set(told["without_inputs"]) == {"table", "twice"}
    torch.testing.assert_close(small.last.bias, model.last.bias)  # no inputs are known by which it could be rounded


def test_what_cannot_be_met_is_said(dense: nn.Module, stripes: Task, tmp_path: Path) -> None:
    for settings in ({"size": "20 B"}, {"max_damage": 1e-9}):
        with pytest.raises(UserError) as caught:
            quantize.RateDistortion(**settings)(dense, stripes, Run(tmp_path / next(iter(settings))))  # type: ignore[arg-type]
        assert caught.value.code == "E114"
        assert next(iter(settings)) in str(caught.value)


@pytest.mark.parametrize("settings", [{}, {"size": "4 kB", "max_damage": 0.1}])
def test_one_of_both_limits_is_given(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        quantize.RateDistortion(**settings)
    assert caught.value.code == "E111"


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_numbers_that_are_not_finite(value: float, stripes: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(64, 8), nn.Linear(8, 3)]
    layers[0].weight.data[:] = value  # outputs of 3e38 · x overflow
    with pytest.raises(UserError) as caught:
        quantize.RateDistortion(size="10%")(nn.Sequential(nn.Flatten(), *layers).eval(), stripes, Run(tmp_path))
    assert caught.value.code == "E121"


class OneOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 24), nn.Linear(24, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x.flatten(1)).relu())  # type: ignore[no-any-return]


def without_biases() -> nn.Module:
    layers = [nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 16, bias=False), nn.ReLU(), nn.Linear(16, 3, bias=False)]
    return nn.Sequential(nn.Flatten(), *layers)


def depthwise() -> nn.Module:
    convolutions = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(128, 3))


def of_signs() -> nn.Module:
    """Filters that a step fits exactly."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))
    model[0].weight.data.sign_()  # type: ignore[union-attr, operator]
    return model


def turned() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return nn.Sequential(nn.Flatten(), transformers.pytorch_utils.Conv1D(48, 64), nn.ReLU(), nn.Linear(48, 3))


@pytest.mark.parametrize("make", [OneOutput, without_biases, depthwise, of_signs, turned])
def test_what_is_estimated_is_what_is_measured(make: Any, stripes: Task, tmp_path: Path) -> None:
    """The sum over the layers foretells the change, and a change that is allowed is used."""
    torch.manual_seed(0)
    model, run = make().eval(), Run(tmp_path)
    zeros = (stripes.test.inputs, torch.zeros(400, 1))
    task = Task(train=zeros, test=zeros, loss="mse") if make is OneOutput else stripes
    quantize.RateDistortion(max_damage=0.02)(model, task, run)
    told = next(event for event in read_events(run.folder) if event["event"] == "levels")
    assert 0.4 < told["estimated"] / told["max_damage"] < 2.5
    assert 0.01 < told["max_damage"] <= 0.02


def test_outputs_that_are_worse_than_always_the_same_answer_are_refused(
    dense: nn.Module, stripes: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for measured, refused in ((0.9, False), (1.3, True), (float("inf"), True)):
        monkeypatch.setattr(OutputChange, "of", lambda _self, _model, value=measured: value)
        step, run = quantize.RateDistortion(size="10%"), Run(tmp_path / str(measured))
        if not refused:
            step(dense, stripes, run)
            continue
        with pytest.raises(UserError) as caught:
            step(dense, stripes, run)
        assert (caught.value.code, "always the same" in str(caught.value)) == ("E114", True)


def test_weights_of_other_types_are_refused(stripes: Task, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).bfloat16().eval()
    with pytest.raises(UserError) as caught:
        quantize.RateDistortion(size="10%").preview(model, stripes, Run(tmp_path))
    assert (caught.value.code, "bfloat16" in str(caught.value)) == ("E121", True)


class Routed(nn.Module):
    """Each token goes to the expert that its number tells, so that few samples do not reach all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.experts = nn.Embedding(40, 16), nn.ModuleList(nn.Linear(16, 16) for _ in range(6))
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        states, route = self.table(ids), self.table(ids).argmax(-1) % len(self.experts)
        out = torch.zeros_like(states)
        for k, expert in enumerate(self.experts):
            if bool((route == k).any()):
                out = out + (route == k)[..., None] * expert(states)
        return self.head(out.mean(1))


def test_layers_that_the_first_samples_do_not_reach_are_rounded_with_their_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 40, (200, 3))
    ids[:2] = ids[0, 0]  # one expert alone
    task, model = Task(train=ids, test=ids), Routed().eval()
    for seed in range(3):
        run = Run(tmp_path / str(seed), seed=seed)
        found = quantize.RateDistortion(size="15%", exclude=("table",))(model, task, run)
        assert all(isinstance(expert, CodebookLayer) for expert in found.experts)  # type: ignore[union-attr]
        (event,) = [one for one in read_events(run.folder) if one["event"] == "calibrated"]
        assert event["without_inputs"] == {}
        everything = quantize.RateDistortion(size="15%")(model, task, Run(tmp_path / f"all-{seed}", seed=seed))
        assert isinstance(everything.table, CodebookLayer), "a coarser table sends tokens to other experts"
