"""GPTQ and AWQ through the step: outputs closer than with the nearest codes, on what the layers before give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, Task, prune, quantize
from mirabelle.calibration import CalibrationSamples
from mirabelle.calibration.columns import Columns
from mirabelle.calibration.layer_moments import change_by_moments
from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of, replaced_modules
from mirabelle.numerics.group_codes import Grid, nearest
from mirabelle.quantize.calibrated_codes import Method, enough_samples, fitted_matrix
from mirabelle.run.journal import read_events
from mirabelle.runtime.export import export
from mirabelle.runtime.gates import torch_equals_onnx
from small_pictures import distance, small_network, small_pictures


@pytest.fixture
def network() -> nn.Module:
    return small_network()


@pytest.fixture
def pictures() -> Task:
    return small_pictures()


@pytest.mark.parametrize("activation_order", [False, True])
def test_gptq_keeps_the_outputs_of_a_network_closer(
    network: nn.Module, pictures: Task, tmp_path: Path, activation_order: bool
) -> None:
    settings: dict[str, Any] = {"weight_bits": 3, "group_size": 32}
    plain = quantize.Weights(**settings)(network, pictures, Run(tmp_path / "plain"))
    step = quantize.Weights(**settings, method="gptq", activation_order=activation_order)
    fitted = step(network, pictures, Run(tmp_path / "fitted"))
    assert distance(network, fitted, pictures) < 0.7 * distance(network, plain, pictures)
    assert [name for name, _ in replaced_modules(fitted).items()] == ["0", "2", "5", "7"]
    (event,) = [one for one in read_events(tmp_path / "fitted") if one["event"] == "calibrated"]
    assert list(event["errors"]) == ["0", "2", "5", "7"]
    assert all(after < before for before, after in event["errors"].values())
    gate = torch_equals_onnx(fitted, export(fitted, pictures.example()), list(pictures.test.batches(50)), quantized=False)
    assert gate.passed, gate.detail


def test_pruned_weights_stay_zero(network: nn.Module, pictures: Task, tmp_path: Path) -> None:
    pruned = prune.Weights(sparsity=0.5)(network, pictures, Run(tmp_path / "pruned"))
    step = quantize.Weights(weight_bits=3, group_size=32, zero_points=True, method="gptq")
    found = step(pruned, pictures, Run(tmp_path / "fitted"))
    for name, layer in replaced_modules(found).items():
        assert bool((layer.codes[pruned.get_submodule(name).weight == 0] == 0).all())


def test_scales_of_inputs_make_columns_of_large_inputs_finer_and_the_product_stays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 4)).eval()
    x = torch.randn(200, 64)
    x[:, :4] *= 30  # a few channels are large, as in language models,
    with torch.no_grad():
        net[0].weight[:, :4] *= 0.1  # and their weights not the largest of their groups
    task = Task(train=(x, torch.zeros(200, 4)), test=(x, torch.zeros(200, 4)), loss="mse")
    plain = quantize.Weights(weight_bits=3, group_size=32)(net, task, Run(tmp_path / "plain"))
    scaled: Any = quantize.Weights(weight_bits=3, group_size=32, method="awq")(net, task, Run(tmp_path / "scaled"))
    assert distance(net, scaled, task) < 0.7 * distance(net, plain, task)
    assert scaled[0].settings["divided"]
    assert scaled[0].factor[:4].max() < scaled[0].factor[4:].min()
    with torch.no_grad():
        dense = nn.functional.linear(x, scaled[0].plain_tensors()["weight"], scaled[0].bias)
        torch.testing.assert_close(scaled[0](x), dense, rtol=1e-4, atol=1e-4)
    gate = torch_equals_onnx(scaled, export(scaled, task.example()), list(task.test.batches(50)), quantized=False)
    assert gate.passed, gate.detail


def test_the_scale_of_inputs_is_the_best_of_its_grid() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 32, dtype=torch.float64) * torch.logspace(-1, 1, 32, dtype=torch.float64)
    weight, moments = torch.randn(16, 32, dtype=torch.float64), x.T @ x / 500
    found = fitted_matrix(weight, moments, Method("awq", Grid(3), 16))
    assert found.factor is not None
    values = found.codes.codes * found.codes.scale.repeat_interleave(16, 1) * found.factor
    error = float((x @ (weight - values).T).square().sum(1).mean())
    assert error == pytest.approx(found.errors[1], rel=1e-5)
    every = [nearest(weight * scale, 16, Grid(3)) for scale in scales(moments)]
    errors = [
        float((x @ (weight - own.codes * own.scale.repeat_interleave(16, 1) / scale).T).square().sum(1).mean())
        for own, scale in zip(every, scales(moments), strict=True)
    ]
    power = float((x @ weight.T).square().sum(1).mean())
    assert found.errors[1] == pytest.approx(min(errors), rel=1e-5)
    assert 0 < found.errors[1] / power < found.errors[0] / power < 0.1


def scales(moments: Tensor) -> list[Tensor]:
    found = [moments.diagonal() ** (k / 40) for k in range(20)]
    return [scale / (scale.max() * scale.min()).sqrt() for scale in found]


def test_what_cannot_be_calibrated_is_rounded_to_the_nearest_and_told(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.again, self.idle = nn.Embedding(20, 32), nn.Linear(32, 32), nn.Linear(32, 2)
            self.one, self.out = nn.Linear(32, 20, bias=False), nn.Linear(32, 3)
            self.one.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            x = self.again(self.again(self.table(ids).mean(1)))
            return self.out(x) + self.one(x)[:, :3]

    torch.manual_seed(0)
    ids = torch.randint(0, 20, (50, 4))
    task = Task(train=(ids, torch.arange(50) % 3), test=(ids, torch.arange(50) % 3))
    model = quantize.Weights(weight_bits=4, group_size=16, method="gptq")(Odd(), task, Run(tmp_path))
    assert set(architecture_of(model).replaced) == {"table", "again", "idle", "one", "out"}
    (event,) = [one for one in read_events(tmp_path) if one["event"] == "calibrated"]
    assert list(event["errors"]) == ["out"]
    assert event["nearest"] == {
        "again": "it runs more than once",
        "idle": "it never runs",
        "table": "it shares its weight",
        "one": "it shares its weight",
    }


def test_nan_inputs_are_refused_by_the_name_of_the_layer(network: nn.Module, pictures: Task, tmp_path: Path) -> None:
    with torch.no_grad():
        network[2].bias[3] = torch.nan
    with pytest.raises(UserError, match=r'E131.*inputs of layer "5" are NaN'):
        quantize.Weights(weight_bits=4, method="gptq")(network, pictures, Run(tmp_path))


def test_masked_tokens_do_not_count() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 4)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.linear(x) * attention_mask[..., None]

    torch.manual_seed(0)
    x, mask = torch.randn(30, 6, 8), torch.randint(0, 2, (30, 6))
    x[mask == 0] = 100.0
    model, seen = Tokens().eval(), []
    batches = CalibrationSamples.of([{"x": x, "attention_mask": mask}]).for_model(model)
    layer = model.linear
    change_by_moments(model, batches, {"linear": (layer, Columns(layer))}, lambda _, moments: seen.append(moments.mean()))
    due = x[mask == 1].double()
    torch.testing.assert_close(seen[0][0], due.T @ due / len(due))


class OfTokens(nn.Module):
    """A linear layer on each token."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(300, 2)

    def forward(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        return (self.layer(states) * attention_mask[..., None]).sum(1)


def test_samples_are_counted_by_the_rows_of_the_widest_layer() -> None:
    """8 rows for each column: one of a sample, of each token that counts, or of each place of a convolution."""
    method = Method("gptq", Grid(4), 128)

    def enough(model: nn.Module, inputs: Any, *names: str) -> int:
        few = CalibrationSamples.of([inputs]).for_model(model)
        return enough_samples(model, {name: model.get_submodule(name) for name in names}, few, method)

    assert enough(nn.Sequential(nn.Linear(100, 3)), torch.randn(8, 100), "0") == 8 * 100
    assert enough(nn.Sequential(nn.Linear(9, 3)), torch.randn(8, 9), "0") == 128
    assert enough(nn.Sequential(nn.Linear(9000, 3)), torch.randn(8, 9000), "0") == 4096
    assert enough(nn.Sequential(nn.Conv2d(20, 3, 3)), torch.randn(8, 20, 4, 4), "0") == 8 * 180 // 4
    mask = torch.ones(8, 6).long()
    mask[:, 2:] = 0
    assert enough(OfTokens(), {"states": torch.randn(8, 6, 300), "attention_mask": mask}, "layer") == 8 * 300 // 2
    body = nn.Sequential(nn.Conv2d(20, 30, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(30, 2))
    assert 8 * 30 > 128, "which the classifier alone would ask for"
    assert enough(body, torch.randn(8, 20, 9, 9), "0", "3") == 128
