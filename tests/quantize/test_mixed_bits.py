"""Bits for each layer: the least change of the outputs within a size, against an exhaustive search."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import mirabelle
from mirabelle import Run, Task, quantize
from mirabelle.calibration.samples import CalibrationSamples
from mirabelle.errors import UserError
from mirabelle.quantize.bits import MixedBits
from mirabelle.quantize.dense_layers import weight_of
from mirabelle.quantize.mixed_bits import bits_within, output_changes, rounded_by_row
from mirabelle.report import read_events
from mirabelle.step import step_from_data

CHOICES = (2, 4, 8)


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        model[0].weight.mul_(3.0)
    return model


@pytest.fixture
def task() -> Task:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    return Task(train=(x, x.argmax(1) % 3), test=(x, x.argmax(1) % 3))


def test_the_choice_is_the_best_of_all(network: nn.Sequential, task: Task, tmp_path: Path) -> None:
    names, run = ["0", "2", "4"], Run(tmp_path)
    mixed = MixedBits(size="900 B", choices=CHOICES, samples=64)
    found = bits_within(mixed, network, names, task, run)
    batches = CalibrationSamples.drawn(task.train, 64, run.seed_for("bits")).for_model(network)
    weights = {name: weight_of(network.get_submodule(name)) for name in names}
    tried = output_changes(network, weights, CHOICES, batches)
    changes = {name: [one.change for one in own] for name, own in tried.items()}
    biases = 4 * (32 + 16 + 3)
    fitting = {
        choice: sum(changes[name][pick] for name, pick in zip(names, choice, strict=True))
        for choice in itertools.product(range(3), repeat=3)
        if biases
        + sum(rounded_by_row(weights[name], CHOICES[pick]).coded_bytes for name, pick in zip(names, choice, strict=True))
        <= 900
    }
    assert 0 < len(fitting) < 27
    best = min(fitting, key=fitting.__getitem__)
    assert [found[name] for name in names] == [CHOICES[pick] for pick in best]
    assert len(set(found.values())) > 1


def test_the_change_of_a_linear_output_is_that_of_its_weight() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 4, bias=False), torch.randn(50, 5)
    weight = layer.weight.detach().clone()
    batches = CalibrationSamples.of([x]).for_model(layer)
    found = output_changes(layer, {"": layer.weight.detach()}, (3,), batches)[""][0].change
    y = x @ weight.t()
    errors = []
    for fraction in torch.linspace(1.0, 0.4, 24):  # one scale of 24 for each row, as `affine.symmetric_scales` tries them
        scale = (weight.abs().amax(1) * fraction / 3).bfloat16().float()[:, None]
        errors.append(weight - (weight / scale).round().clamp(-3, 3) * scale)
    rows = torch.stack([error.square().sum(1) for error in errors]).argmin(0)
    best = torch.stack([errors[int(k)][row] for row, k in enumerate(rows)])
    assert found == pytest.approx(float((x @ best.t()).square().sum() / (y - y.mean(0)).square().sum()), rel=1e-4)
    assert torch.equal(layer.weight, weight)


def test_the_decision_is_repeated(network: nn.Sequential, task: Task, tmp_path: Path) -> None:
    run, mixed = Run(tmp_path), MixedBits(size="900 B", choices=CHOICES, samples=8)
    first = bits_within(mixed, network, ["0", "2", "4"], task, run)
    assert bits_within(mixed, nn.Sequential(), ["0"], task, run) == first


def test_a_size_that_cannot_be_reached_is_refused_with_the_least(network: nn.Sequential, task: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the least possible is") as caught:
        bits_within(MixedBits(size="10 B", choices=CHOICES), network, ["0", "2", "4"], task, Run(tmp_path))
    assert caught.value.code == "E114"


def test_layers_that_share_a_weight_get_the_same_bits(task: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    found = bits_within(MixedBits(size="150 B", choices=CHOICES), model, ["0", "2", "3"], task, Run(tmp_path))
    assert found["0"] == found["2"]


@pytest.mark.parametrize(("choices", "code"), [((4, 2), "E111"), ((), "E111"), ((1, 4), "E110")])
def test_choices_are_ascending_bits(choices: tuple[int, ...], code: str) -> None:
    with pytest.raises(UserError) as caught:
        MixedBits(size="5%", choices=choices)
    assert caught.value.code == code


def test_a_static_layer_has_the_bits_that_were_chosen_and_the_run_reloads(
    network: nn.Sequential, task: Task, tmp_path: Path
) -> None:
    step = quantize.Static(weight_bits=MixedBits(size="900 B", choices=CHOICES))
    result = mirabelle.compress(network, task, [step], out=tmp_path)
    decided = read_events(tmp_path)
    bits = json.loads(next(event["value"] for event in decided if event.get("name") == "bits"))
    layers = {name: layer for name, layer in result.model.named_modules() if isinstance(layer, quantize.StaticLayer)}
    assert {name: layer.settings["weight_bits"] for name, layer in layers.items()} == bits
    assert all(int(layer.codes.abs().max()) <= 2 ** (bits[name] - 1) - 1 for name, layer in layers.items())
    assert all(gate.passed for gate in result.gates.values())


def test_a_recipe_gives_the_size_as_a_table() -> None:
    step = step_from_data({"use": "quantize.Static", "weight_bits": {"size": "20%", "choices": [4, 8]}})
    assert step == quantize.Static(weight_bits=MixedBits(size="20%", choices=(4, 8)))
    with pytest.raises(UserError, match="weight_bits"):
        step_from_data({"use": "quantize.Static", "weight_bits": 9})
    with pytest.raises(UserError, match="sise"):
        step_from_data({"use": "quantize.Static", "weight_bits": {"sise": "20%"}})
