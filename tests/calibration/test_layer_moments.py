"""Moments of layers' inputs, and how many samples they need."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mirabelle.calibration import layer_moments
from mirabelle.calibration.columns import Columns
from mirabelle.calibration.layer_moments import change_by_moments, samples_needed
from mirabelle.calibration.moments import Moments
from mirabelle.calibration.samples import CalibrationSamples, SampleBatches


def moments_of(model: nn.Module, layer: nn.Linear | nn.Conv2d, samples: CalibrationSamples) -> Moments:
    found: list[Moments] = []
    change_by_moments(model, samples.for_model(model), {"0": (layer, Columns(layer))}, lambda _, one: found.append(one))
    return found[0]


@pytest.mark.parametrize("convolution", [False, True])
def test_of_many_rows_some_are_drawn_and_the_moments_are_near_those_of_all(
    convolution: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 3, 16, 16) if convolution else torch.randn(20, 256, 6) @ torch.randn(6, 6)
    layer: nn.Linear | nn.Conv2d = nn.Conv2d(3, 4, 3, padding=1) if convolution else nn.Linear(6, 4)
    model = nn.Sequential(layer)
    samples = CalibrationSamples.of([x])
    whole = moments_of(model, layer, samples)
    assert whole.rows == 20 * 256
    rows = next(Columns(layer).of(x))[0].double().numpy()
    np.testing.assert_allclose(whole.mean()[0].numpy(), rows.T @ rows / len(rows), rtol=1e-6, atol=1e-8)
    monkeypatch.setattr(layer_moments, "_MOST_ROWS", 2000)
    some, again = moments_of(model, layer, samples), moments_of(model, layer, samples)
    assert some.rows == 2000
    torch.testing.assert_close(some.mean(), again.mean(), rtol=0, atol=0)
    scale = float(whole.mean().abs().max())
    assert 0 < float((some.mean() - whole.mean()).abs().max()) < 0.15 * scale


def test_batches_count_by_their_rows_where_rows_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of one batch have eight times as many tokens that count as those of the other, and another scale."""
    torch.manual_seed(0)
    x, mask = torch.randn(40, 100, 4), torch.ones(40, 100).long()
    x[20:] *= 3
    mask[20:, 12:] = 0

    class Scored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    model, found = Scored(), []
    batches = SampleBatches(CalibrationSamples.of([{"x": x, "attention_mask": mask}]), 20)
    monkeypatch.setattr(layer_moments, "_MOST_ROWS", 1000)
    change_by_moments(model, batches, {"layer": (model.layer, Columns(model.layer))}, lambda _, one: found.append(one))
    counting = x[mask.bool()]
    assert found[0].rows == pytest.approx(len(counting) * 1000 / 4000, abs=2)
    due = float(counting.square().sum(1).mean())
    assert float(found[0].mean()[0].trace()) == pytest.approx(due, rel=0.15)


def test_large_samples_are_fewer_but_not_fewer_than_their_rows_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(2), nn.AdaptiveAvgPool1d(4))
    layer = model[0]
    assert isinstance(layer, nn.Conv2d)
    samples = CalibrationSamples.of([torch.randn(40, 3, 32, 32)])
    few = samples.for_model(model)
    layers = {"0": (layer, Columns(layer))}
    assert few.most_together(model) > 1000
    assert samples_needed(model, few, layers) == 128
    each = 8 * 32 * 32 * 4  # bytes of the result of the convolution
    for together, needed in ((60, 60), (10, 32), (500, 128)):
        monkeypatch.setattr("mirabelle.calibration.samples._BYTES_INSTEAD_OF_PASSES", together * each)
        assert few.most_together(model) == together
        assert samples_needed(model, few, layers) == needed
    one_row = nn.Sequential(nn.Conv2d(3, 8, 32))
    wide = one_row[0]
    assert isinstance(wide, nn.Conv2d)
    monkeypatch.setattr("mirabelle.calibration.samples._BYTES_INSTEAD_OF_PASSES", 10)
    assert samples_needed(one_row, few, {"0": (wide, Columns(wide))}) == 4096, "8 rows for each of 3,072 columns, at most 4,096"
