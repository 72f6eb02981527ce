"""Noise on the outputs has the power that is asked for, and the metric follows it."""

from __future__ import annotations

import torch
from torch import nn

from mirabelle import Run, Task, Training
from mirabelle.planning.noise import _deviations, _with_noise, metrics_by_change
from mirabelle.training import fit


def test_the_outputs_change_by_so_much() -> None:
    draw = torch.Generator().manual_seed(0)
    outputs = [3.0 + torch.randn(4000, 5, generator=draw) * torch.tensor([0.1, 1.0, 2.0, 5.0, 0.0]) for _ in range(2)]
    whole = torch.cat(outputs)
    for change in (0.01, 0.5):
        noisy = torch.cat([_with_noise(one, [change**0.5 * s for s in _deviations(outputs)], draw) for one in outputs])  # type: ignore[misc]
        found = float((noisy - whole).square().sum() / (whole - whole.mean(0)).square().sum())
        assert abs(found / change - 1) < 0.03


def test_integers_among_the_outputs_stay() -> None:
    outputs = (torch.ones(3, 2), torch.arange(3))
    noisy = _with_noise(outputs, [0.5], torch.Generator())
    assert torch.equal(noisy[1], outputs[1])
    assert not torch.equal(noisy[0], outputs[0])


def test_the_metric_falls_from_that_of_the_model(blobs: Task, mlp: nn.Module, run: Run) -> None:
    model = fit(mlp, blobs, Training(epochs=10, batch_size=32, lr=1e-2), run)
    found = metrics_by_change(model, blobs, 0)
    with torch.no_grad():
        right = (model(blobs.validation.inputs).argmax(1) == blobs.validation.targets).float().mean()
    assert found[0] == (0.0, float(right))
    values = [value for _, value in found]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0] - 0.1
    assert found == metrics_by_change(model, blobs, 0)
