"""Regressions of quantities of any size: trained on standardized targets, told and shipped in their own units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mirabelle
from mirabelle import Training, distill, prune, quantize
from mirabelle.artifact.prediction import Predictor
from mirabelle.model import ScaleOutput, architecture_of
from mirabelle.model.output_scale import with_output_scale
from mirabelle.sources import task_from
from mirabelle.task import Standardized
from mirabelle.training import with_scale_of_targets

TRAINED = Training(epochs=25, batch_size=16, lr=1e-2)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))


def student() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))


@pytest.fixture
def houses(tmp_path: Path) -> mirabelle.Task:
    """Prices of about 200,000 that follow from area and age."""
    generator = np.random.default_rng(0)
    area, age = generator.uniform(50, 200, 300), generator.uniform(0, 80, 300)
    prices = 1500 * area - 1000 * age + 20_000
    rows = "".join(f"{a:.1f},{b:.1f},{price:.0f}\n" for a, b, price in zip(area, age, prices, strict=True))
    (tmp_path / "houses.csv").write_text("area,age,price\n" + rows)
    return task_from("./houses.csv", {}, data_folder=None, folder=tmp_path)


def test_prices_are_learned_and_shipped_in_their_units(houses: mirabelle.Task, tmp_path: Path) -> None:
    assert isinstance(houses.loss, Standardized)
    assert houses.loss.deviation == pytest.approx(float(houses.train.targets.std(correction=0)), rel=1e-4)
    steps = [
        distill.Student(model=f"{Path(__file__)}:student", train=TRAINED),
        prune.Channels(sparsity=0.25, train=TRAINED),
        quantize.Dynamic(),
    ]
    torch.manual_seed(0)
    result = mirabelle.compress(net(), houses, steps, out=tmp_path / "run", baseline=TRAINED)
    assert all(result.gates.values())
    assert result.profile.metric.value > 0.9
    (tmp_path / "new.csv").write_text("age,area\n20,100\n")
    (found,) = Predictor(tmp_path / "run")([tmp_path / "new.csv"])
    assert found.outputs == pytest.approx([150_000], rel=0.15)
    loaded = mirabelle.load(student, tmp_path / "run")
    assert isinstance(architecture_of(loaded).edits[0], ScaleOutput)
    inputs = houses.test.inputs
    torch.testing.assert_close(loaded(inputs), result.model(inputs), rtol=0, atol=0)


def test_a_model_that_has_the_scale_keeps_it(houses: mirabelle.Task) -> None:
    assert isinstance(houses.loss, Standardized)
    fresh = with_scale_of_targets(net(), houses)
    assert [type(edit) for edit in architecture_of(fresh).edits] == [ScaleOutput]
    again = with_scale_of_targets(fresh, houses.replace(loss=Standardized("mse", 0.0, 1e9)))
    assert len(architecture_of(again).edits) == 1
    outputs = fresh(houses.test.inputs)
    dense = nn.Sequential(*fresh)
    torch.testing.assert_close(outputs, dense(houses.test.inputs) * houses.loss.deviation + houses.loss.mean)


def test_the_loss_is_that_of_standardized_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(20, 1, generator=generator), torch.randn(20, 1, generator=generator)
    for name, plain in (("mse", nn.MSELoss()), ("mae", nn.L1Loss()), ("huber", nn.HuberLoss())):
        own = Standardized(name, mean=500.0, deviation=40.0)  # type: ignore[arg-type]
        given = own(outputs * 40 + 500, targets * 40 + 500)
        torch.testing.assert_close(given, plain(outputs, targets), rtol=1e-4, atol=1e-5)


def test_names_signature_and_copies_stay() -> None:
    model = with_output_scale(net(), 3.0, 2.0)
    assert isinstance(model, nn.Sequential)
    assert list(model.state_dict()) == list(net().state_dict())
    x = torch.ones(2, 2)
    other = mirabelle.model.copied(model)
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
    assert ScaleOutput.from_data(ScaleOutput(3.0, 2.0).to_data()) == ScaleOutput(3.0, 2.0)


def test_targets_may_stay_as_they_are(houses: mirabelle.Task, tmp_path: Path) -> None:
    plain = task_from("./houses.csv", {"scale_target": False}, data_folder=None, folder=tmp_path)
    assert not isinstance(plain.loss, Standardized)
    assert torch.equal(plain.train.targets, houses.train.targets)
