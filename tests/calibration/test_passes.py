"""Modules change one after the other: many batches end where one batch of everything ends, in as few passes as are needed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mirabelle.calibration import samples as sizes
from mirabelle.calibration.passes import layer_by_layer
from mirabelle.calibration.samples import CalibrationSamples, SampleBatches
from mirabelle.model.architecture import Architecture, attach
from mirabelle.model.edits import Cut
from mirabelle.prune.recovery import reconstruct, reestimate_batch_norm


class Scaled:
    """Divides a layer's weight by the mean absolute value of its inputs, where these are above a threshold."""

    def __init__(self, layer: nn.Linear, threshold: float, *, changes: bool) -> None:
        self.layer, self.threshold, self.changes = layer, threshold, changes
        self.total, self.rows, self.batches = 0.0, 0, 0

    def take(self, given: Tensor) -> bool:
        if self.changes or bool((given.abs() > self.threshold).any()):
            self.changes = True
            self.total, self.rows = self.total + float(given.abs().mean(1).sum()), self.rows + len(given)
        self.batches += 1
        return self.changes

    def finish(self) -> None:
        if self.changes:
            self.layer.weight.div_(self.total / self.rows)


def scaled(model: nn.Sequential, x: Tensor, most: int, thresholds: dict[str, float]) -> tuple[nn.Sequential, list[str]]:
    model, begun = copy.deepcopy(model), []

    def begin(name: str, changes: bool) -> Scaled:
        begun.append(name)
        return Scaled(model.get_submodule(name), thresholds.get(name, 0.0), changes=changes)

    modules = {str(k): layer for k, layer in enumerate(model)}
    layer_by_layer(model, SampleBatches(CalibrationSamples.of([x]), most), modules, begin)
    return model, begun


@pytest.mark.parametrize("thresholds", [{}, {"0": 1e9}, {"1": 1e9}, {"0": 1e9, "1": 1e9, "2": 1e9}, {"1": 2.8}])
def test_batches_end_where_one_batch_ends(thresholds: dict[str, float]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3))).double()
    x = torch.randn(30, 4).double()
    whole, begun = scaled(model, x, 30, thresholds)
    assert begun == ["0", "1", "2"], "one pass"
    parts, _ = scaled(model, x, 7, thresholds)
    for one, other, before in zip(whole, parts, model, strict=True):
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-12, atol=0)  # sums of 30 numbers in another order
        assert before.weight is not one.weight


def test_a_pass_goes_as_far_as_the_first_module_that_changes() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    assert scaled(model, torch.ones(9, 4), 3, {})[1] == ["0", "1", "2"]
    assert scaled(model, torch.ones(9, 4), 3, {"0": 1e9, "1": 1e9, "2": 1e9})[1] == ["0", "1", "2"], "one pass: none changes"


def test_what_shows_late_is_looked_at_again_from_the_start() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    x = torch.cat([torch.full((3, 2), 0.1), torch.full((3, 2), 5.0)])
    found, begun = scaled(model, x, 3, {"0": 1.0})
    assert begun == ["0", "1", "0", "1"], "the second was dropped when the first turned out to change"
    torch.testing.assert_close(found[0].weight, model[0].weight / 2.55)


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A batch holds a few samples alone."""
    monkeypatch.setattr(sizes, "_BYTES_OF_ALL", 2000)
    monkeypatch.setattr(sizes, "_BYTES_OF_A_BATCH", 2000)
    return monkeypatch


class Twice(nn.Module):
    """Two norms, the second of which runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.twice = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.twice(self.norm(self.conv(x)).relu()) - 1)


def test_statistics_of_norms_do_not_depend_on_batches(several: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(40, 2, 6, 6)
    assert len(CalibrationSamples.of([x]).for_model(model)) > 3
    parts = reestimate_batch_norm(model, [x])
    several.undo()
    whole = reestimate_batch_norm(model, [x])
    assert parts.norms == whole.norms == ("norm", "twice")
    for name, tensor in whole.model.state_dict().items():
        # Convolutions of other batches round differently, 1e-7 a value.
        torch.testing.assert_close(parts.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_fits_do_not_depend_on_batches_and_are_numpy_s(several: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3))
    smaller = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3))
    kept = [0, 2, 3, 5]
    slices = {"0.weight": {0: kept}, "0.bias": {0: kept}, "2.weight": {1: kept}}
    tensors = dense.state_dict()
    tensors |= {
        "0.weight": tensors["0.weight"][kept],
        "0.bias": tensors["0.bias"][kept],
        "2.weight": tensors["2.weight"][:, kept],
    }
    smaller.load_state_dict(tensors)
    attach(smaller, Architecture().with_edit(Cut.of(slices, {})))
    dense, smaller, x = dense.double(), smaller.double(), torch.randn(200, 2, 6, 6).double()
    assert len(CalibrationSamples.of([x]).for_model(dense)) > 3
    parts = reconstruct(dense, smaller, [x[:50], x[50:]], ridge=1e-12)
    several.undo()
    whole = reconstruct(dense, smaller, [x], ridge=1e-12)
    assert list(parts.layers) == list(whole.layers) == ["2", "5"]
    for name, tensor in whole.model.state_dict().items():
        # Float64 sums in another order, by the condition of the Gram matrix, below 1e4.
        torch.testing.assert_close(parts.model.state_dict()[name], tensor, rtol=1e-8, atol=1e-10)
    with torch.no_grad():
        for layers, fitted in ((2, parts.model[2]), (5, parts.model[5])):
            read, due = parts.model[:layers](x), dense[: layers + 1](x)
            if layers == 2:
                read = nn.functional.unfold(read, 3).transpose(1, 2).flatten(0, 1)
                due = due.movedim(1, 3).flatten(0, 2)
            solution = torch.linalg.lstsq(torch.cat([read, torch.ones(len(read), 1)], 1), due).solution
            torch.testing.assert_close(fitted.weight.flatten(1), solution[:-1].T, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(fitted.bias, solution[-1], rtol=1e-6, atol=1e-7)
            missed = float((fitted.weight.flatten(1) @ read.T + fitted.bias[:, None] - due.T).square().sum())
            power = float((due - due.mean(0)).square().sum())
            assert parts.layers[str(layers)][1] == pytest.approx(missed / power, rel=1e-4, abs=1e-9)
