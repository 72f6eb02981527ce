"""Contract of the family of quantizing steps, run over its door, and the truth of each."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto
from torch import Tensor, nn
from torch.nn import functional

from mirabelle import Run, Task, Training, compress, prune, quantize
from mirabelle.calibration.ranges import Range, activation_ranges
from mirabelle.errors import UserError
from mirabelle.graph.rewrite import Rewrite
from mirabelle.inspection.layers import layers_of_onnx
from mirabelle.model.architecture import architecture_of, attach
from mirabelle.quantize import DynamicLayer, StaticLayer, TokenLayer, WeightLayer
from mirabelle.report import left_by_steps, read_events
from mirabelle.runtime.export import export
from mirabelle.runtime.gates import torch_equals_onnx
from mirabelle.runtime.runtime import default_runtime
from mirabelle.step import Step, step_from_data, step_to_data
from mirabelle.training import evaluate, fit

# They need a training; have no codes; have places in a table (test_codebook); or need a limit (test_rate_distortion).
_OTHERS = {"Aware", "EntropyConstrained", "Half", "Codebook", "RateDistortion"}
STEPS: list[Step] = [
    *(kind() for name in quantize.__all__ if hasattr(kind := getattr(quantize, name), "stage") and name not in _OTHERS),
    quantize.Dynamic(granularity="tensor"),
    quantize.Aware(train=Training(steps=1, precision="float32")),
]
every_step = pytest.mark.parametrize("step", STEPS, ids=repr)


@pytest.fixture
def trained(cnn: nn.Module, images: Task, run: Run) -> nn.Module:
    return fit(cnn, images, Training(epochs=15, batch_size=20, lr=0.01, precision="float32"), run)


@every_step
def test_every_step_gives_int8_modules_and_keeps_the_metric(step: Step, trained: nn.Module, images: Task, run: Run) -> None:
    before = copy.deepcopy(trained.state_dict())
    model = step(trained, images, run.within("step"))
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
    codes = [buffer for name, buffer in model.named_buffers() if name.endswith("codes") and not name.endswith("bias_codes")]
    assert {buffer.dtype for buffer in codes} == {torch.int8}
    assert set(architecture_of(model).replaced) == {
        name.rpartition(".")[0] for name in model.state_dict() if name.endswith(".codes")
    }
    drop = evaluate(trained, images.validation, images).mean() - evaluate(model, images.validation, images).mean()
    assert drop <= 0.04
    assert step_from_data(step_to_data(step)) == step


@every_step
def test_every_step_exports_with_int8_initializers_that_onnx_runtime_computes_alike(
    step: Step, trained: nn.Module, images: Task, run: Run
) -> None:
    model = step(trained, images, run.within("step"))
    onnx = export(model, images.example())
    tensors = {tensor.name: tensor for tensor in ModelProto.FromString(onnx).graph.initializer}
    for name in architecture_of(model).replaced:
        assert tensors[f"{name}.codes"].data_type == TensorProto.INT8
        assert f"{name}.weight" not in tensors
    with torch.inference_mode():
        expected = model(images.test.inputs).numpy()
    given = default_runtime().load(onnx, threads=1).outputs_of([images.test.first(50)])[0].numpy()
    levels = np.abs(expected - given).max() / np.abs(expected).max()
    assert levels < 0.02  # a rounding tie that falls the other way moves an activation by one of 256 levels
    assert (expected.argmax(1) == given.argmax(1)).mean() >= 0.98


@every_step
def test_zeros_stay_zero(step: Step, trained: nn.Module, images: Task, run: Run) -> None:
    pruned = prune.Weights(sparsity=0.6)(trained, images, run)
    model = step(pruned, images, run.within("step"))
    linear = next(module for name, module in model.named_modules() if name == "4")
    codes = linear.codes.t() if isinstance(linear, DynamicLayer) else linear.codes
    assert bool((codes[pruned.get_submodule("4").weight == 0] == 0).all())


def test_a_static_layer_computes_what_the_formula_says() -> None:
    torch.manual_seed(0)
    dense, inputs = nn.Linear(5, 3), torch.randn(7, 5).clamp(-1, 2)
    layer = StaticLayer.quantized(dense, Range(-1.0, 2.0), weight_bits=8)
    s_x, zero = float(layer.input_scale), int(layer.input_zero_point)
    codes = np.clip(np.rint(inputs.numpy() / s_x) + zero, 0, 255) - zero
    integers = codes.astype(np.int64) @ layer.codes.numpy().astype(np.int64).T + layer.bias_codes.numpy()
    expected = integers * (layer.scale.numpy().astype(np.float64) * s_x)
    assert layer(inputs).numpy() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert layer(inputs).numpy() == pytest.approx(dense(inputs).detach().numpy(), abs=0.03)
    assert s_x >= 3 / 255  # nothing of the calibrated range is lost


def test_a_dynamic_layer_computes_what_onnx_says() -> None:
    torch.manual_seed(0)
    dense, inputs = nn.Linear(600, 3), torch.randn(2, 4, 600)
    layer = DynamicLayer.quantized(dense, 8)
    low, high = min(float(inputs.min()), 0.0), max(float(inputs.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.rint(-low / scale)
    codes = np.clip(np.rint(inputs.numpy() / scale) + zero, 0, 255) - zero
    expected = (codes @ layer.codes.numpy().astype(np.float64)) * scale * layer.scale.numpy() + layer.bias.numpy()
    assert layer(inputs).numpy() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_per_token_each_vector_is_rounded_by_its_own_largest_value_whatever_lies_beside_it() -> None:
    torch.manual_seed(0)
    dense, inputs = nn.Linear(600, 3), torch.randn(2, 4, 600)
    inputs[0, 1] *= 100  # an outlier
    inputs[1, 3] = 0
    layer, coarse = TokenLayer.quantized(dense, 8), DynamicLayer.quantized(dense, 8)
    largest = np.abs(inputs.numpy()).max(-1, keepdims=True)
    codes = np.rint(inputs.numpy() / np.where(largest > 0, largest, 1) * np.float64(127))
    expected = codes @ layer.codes.numpy().astype(np.float64) * (largest / 127) * layer.scale.numpy() + layer.bias.numpy()
    given = layer(inputs)
    assert given.numpy() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert torch.equal(given[1, 3], dense.bias)
    assert torch.equal(layer(inputs[1:]), given[1:])  # alone as with others: sums of integers below 2²⁴ are exact in any order
    exact = dense(inputs).detach()
    errors = [float((found - exact)[0, 0].abs().mean()) for found in (given, coarse(inputs))]
    assert errors[0] < errors[1] / 10


def test_per_token_onnx_runtime_gives_what_torch_gives(run: Run) -> None:
    torch.manual_seed(0)
    net, inputs = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 5)), torch.randn(50, 7, 40)
    inputs[3, 2] = 0
    task = Task(
        train=(inputs, torch.zeros(50, 7, 5)), test=(inputs, torch.zeros(50, 7, 5)), loss="mse", metric="negative_squared_error"
    )
    model = quantize.Dynamic(granularity="token", include=("2",))(net, task, run)
    assert {name: entry.use for name, entry in architecture_of(model).replaced.items()} == {"2": "quantize.TokenLayer"}
    onnx = export(model, task.example())
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in ModelProto.FromString(onnx).graph.node}
    gate = torch_equals_onnx(model, onnx, list(task.test.batches(25)), quantized=True)
    assert gate.passed, gate.detail


def test_where_weights_alone_are_integers_onnx_runtime_rounds_nothing_else(run: Run) -> None:
    torch.manual_seed(0)
    net, inputs = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 32, bias=False)), torch.randn(20, 7, 64)
    task = Task(
        train=(inputs, torch.zeros(20, 7, 32)),
        test=(inputs, torch.zeros(20, 7, 32)),
        loss="mse",
        metric="negative_squared_error",
    )
    model = quantize.Weights()(net, task, run)
    onnx = export(model, task.example())
    gate = torch_equals_onnx(model, onnx, list(task.test.batches(10)), quantized=False)
    assert gate.passed, gate.detail
    assert [(layer.name, layer.kind, layer.shape) for layer in layers_of_onnx(onnx)] == [
        ("0", "MatMul", (96, 64)), ("2", "MatMul", (32, 96)),
    ]  # fmt: skip


class Written(nn.Module):
    """A width stands in its code, and a weight is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.mixed, self.head = nn.Conv1d(6, 8, 3, stride=2, padding=1, groups=2), nn.Linear(8, 3)
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.mixed(self.norm(self.conv(x)).relu().reshape(x.shape[0], 6, 64))
        return self.head(self.inner(rows.relu().mean(2)).relu()) + 0.1 * functional.linear(rows.mean(2), self.head.weight)


@pytest.mark.parametrize(
    "step",
    [step if isinstance(step, quantize.Static) else pytest.param(step, marks=pytest.mark.slow) for step in STEPS],
    ids=repr,
)
def test_layers_of_a_rewritten_program_become_integers(step: Step, images: Task, tmp_path: Path) -> None:
    """Through files: the record cuts the dense model, and puts integers into the program that stands for it."""
    torch.manual_seed(0)
    result = compress(Written(), images, [prune.Channels(sparsity=0.5), step], out=tmp_path / "run")
    record = architecture_of(result.model)
    assert record.rewritten
    layers = {name for name in record.replaced if not name.startswith("call_results.")}
    assert layers == ({"inner"} if isinstance(step, quantize.Dynamic) else {"conv", "mixed", "inner"})
    assert all(entry.use.startswith("quantize.") for entry in record.replaced.values())
    assert all(gate.passed for gate in result.gates.values())


@every_step
def test_a_program_whose_weights_are_read_twice_has_no_layers_to_quantize(step: Step, run: Run) -> None:
    model = nn.Module()
    attach(model, architecture_of(model).with_edit(Rewrite({}, "a reshape fixes 64")))
    inputs = torch.zeros(4, 2)
    with pytest.raises(UserError, match=r"E121.*rewritten program without layers.*a reshape fixes 64"):
        step(model, Task(train=(inputs, inputs), test=(inputs, inputs), loss="mse", metric="negative_squared_error"), run)


def test_rows_of_an_embedding_are_rounded_each_by_its_own_scale() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(6, 4)
    with torch.no_grad():
        table.weight[1] *= 1000
        table.weight[2] = 0
    layer = WeightLayer.quantized(table, 4)
    rows = table.weight.detach().double().numpy()
    steps = layer.scale.double().numpy()[:, None]
    assert layer.codes.numpy().tolist() == np.clip(np.rint(rows / steps), -7, 7).astype(int).tolist()
    full = np.abs(rows).max(1) / 7
    assert ((layer.scale.numpy() <= 1.01 * full) & (layer.scale.numpy() >= 0.39 * full))[rows.any(1)].all()
    ids = torch.tensor([[0, 1], [2, 5]])
    assert torch.equal(layer(ids), layer.plain_tensors()["weight"][ids])
    assert layer(ids).shape == (2, 2, 4)


def test_embeddings_beside_integer_layers_ship_as_codes_and_the_rows_alone_are_computed(run: Run) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(500, 16), nn.Flatten(), nn.Linear(48, 3))
    ids, targets = torch.randint(0, 500, (60, 3)), torch.arange(60) % 3
    task = Task(train=(ids, targets), test=(ids, targets))
    static = quantize.Static()(net, task, run)
    assert quantize.Weights().preview(static, task, run).description == ("1 layers are quantized: 0",)
    model = quantize.Weights()(static, task, run)
    assert {name: entry.use for name, entry in architecture_of(model).replaced.items()} == {
        "0": "quantize.WeightLayer", "2": "quantize.StaticLayer",
    }  # fmt: skip
    onnx = ModelProto.FromString(export(model, task.example()))
    tables = [tensor for tensor in onnx.graph.initializer if 500 in tensor.dims and 16 in tensor.dims]
    assert [tensor.data_type for tensor in tables] == [TensorProto.INT8]
    with torch.inference_mode():
        expected = model(ids)
        given = default_runtime().load(onnx.SerializeToString(), 1).outputs_of([task.test.first(60)])[0]
        assert torch.allclose(expected, given, atol=0.02)
        assert torch.allclose(expected, net(ids), atol=0.05)


def test_an_embedding_that_changes_when_it_is_read_stays_as_it_is(run: Run) -> None:
    net = nn.Sequential(nn.Embedding(50, 4, max_norm=1.0), nn.Flatten(), nn.Linear(8, 3))
    ids, targets = torch.randint(0, 50, (20, 2)), torch.arange(20) % 3
    model = quantize.Weights()(net, Task(train=(ids, targets), test=(ids, targets)), run)
    assert list(architecture_of(model).replaced) == ["2"]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_fewer_bits_use_fewer_levels(bits: int, trained: nn.Module, images: Task, run: Run) -> None:
    model = quantize.Static(weight_bits=bits)(trained, images, run)
    assert int(model.get_submodule("4").codes.abs().max()) == 2 ** (bits - 1) - 1


@pytest.mark.parametrize("calibration", ["min-max", "percentile", "entropy", "mse"])
def test_calibrated_ranges_lie_within_the_extremes_and_hold_most_values(
    calibration: Any, trained: nn.Module, images: Task
) -> None:
    batches = list(images.train.batches(50))
    extremes = activation_ranges(trained, ["0", "4"], batches, "min-max", 100.0)
    found = activation_ranges(trained, ["0", "4"], batches, calibration, 99.0)
    assert extremes["0"] == Range(float(images.train.inputs.min()), float(images.train.inputs.max()))
    values = images.train.inputs.flatten()
    inside = ((values >= found["0"].low) & (values <= found["0"].high)).float().mean()
    assert inside >= 0.98
    for name, limits in found.items():
        assert extremes[name].low <= limits.low <= limits.high <= extremes[name].high
    if calibration == "percentile":
        assert found["0"].high < extremes["0"].high


def test_grouped_strided_and_one_dimensional_convolutions_are_quantized(run: Run) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(4, 8, 3, stride=2, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2, bias=False)
    )  # fmt: skip
    inputs, targets = torch.randn(60, 4, 16), torch.arange(60) % 2
    task = Task(train=(inputs, targets), test=(inputs, targets))
    model = quantize.Static()(net, task, run)
    with torch.inference_mode():
        assert torch.allclose(model(inputs), net(inputs), atol=0.05)
        given = default_runtime().load(export(model, task.example()), 1).outputs_of([task.test.first(60)])[0]
        assert torch.allclose(model(inputs), given, atol=0.02)


@pytest.mark.parametrize("step", [quantize.Static(), quantize.Weights()], ids=repr)
def test_volumes_are_convolved_with_integers(step: Step, run: Run) -> None:
    """A batch norm is folded, outputs are rounded behind a ReLU and a max pooling, and the file computes the same."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(6, 4, (1, 3, 2), stride=2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    inputs, targets = torch.randn(40, 2, 8, 8, 8), torch.arange(40) % 3
    task = Task(train=(inputs, targets), test=(inputs, targets))
    model = step(net, task, run)
    assert set(architecture_of(model).replaced) >= {"0", "4", "7"}
    with torch.inference_mode():
        assert torch.allclose(model(inputs), net.eval()(inputs), atol=0.05)
    file = export(model, task.example())
    given = default_runtime().load(file, 1).outputs_of([task.test.first(40)])[0]
    assert torch.allclose(model(inputs), given, atol=0.02)
    kernels = [one for one in ModelProto.FromString(file).graph.initializer if len(one.dims) == 5 and max(one.dims[2:]) > 1]
    assert [one.data_type for one in kernels] == [TensorProto.INT8] * 2


def test_what_is_left_in_floating_point_is_named(cnn: nn.Module, images: Task, run: Run) -> None:
    model = quantize.Dynamic()(cnn, images, run)
    (left,) = left_by_steps(read_events(run.folder))
    total = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    assert left.what.names == ("0.weight",)
    assert left.what.why == "this step quantizes Linear; these are weights of Conv2d"
    assert left.what.share_of_bytes == pytest.approx(4 * 36 / total)
    assert left.what.share_of_macs == pytest.approx(36 * 36 / (36 * 36 + 36 * 3))


def test_every_reason_to_stay_in_floating_point_is_told(run: Run) -> None:
    class Mine(nn.Linear):
        pass

    class MyAttention(nn.MultiheadAttention):
        pass

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.own, self.first, self.last = nn.Embedding(7, 6), Mine(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.mixed = MyAttention(6, 2, batch_first=True)

        def forward(self, words: Tensor) -> Tensor:
            x = self.first(self.own(self.table(words)))
            return self.last(self.mixed(x, x, x)[0].mean(1))

    words = torch.randint(0, 7, (20, 5))
    task = Task(train=(words, torch.arange(20) % 3), test=(words, torch.arange(20) % 3))
    quantize.Dynamic(exclude=("last",))(Net(), task, run)
    told = {left.what.why: left.what for left in left_by_steps(read_events(run.folder))}
    assert {why: left.names for why, left in told.items()} == {
        "excluded": ("last.weight",),
        "Mine is a class of its own, whose code may differ": ("own.weight",),
        "this step quantizes Linear; these are weights of Embedding": ("table.weight",),
        "torch.nn.MultiheadAttention reads the weights of its layers without calling them": (
            "mixed.in_proj_weight",
            "mixed.out_proj.weight",
        ),
        "products of activations stay in floating point": ("mixed",),
    }
    total = 5 * 6 * (6 + 6 + 18 + 6) + 6 * 3 + 2 * 5 * 5 * 6
    assert told["products of activations stay in floating point"].share_of_macs == pytest.approx(2 * 5 * 5 * 6 / total)
    assert told["this step quantizes Linear; these are weights of Embedding"].share_of_macs == 0


def test_a_layer_that_never_runs_is_named(images: Task, run: Run) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(64, 3), nn.Linear(2, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.used(inputs.flatten(1))

    with pytest.raises(UserError, match='"idle" never ran') as caught:
        quantize.Static()(Idle(), images, run)
    assert caught.value.remedy == 'exclude = ["idle"]'
    assert list(architecture_of(quantize.Static(exclude=("idle",))(Idle(), images, run)).replaced) == ["used"]


@pytest.mark.parametrize(
    ("kind", "settings", "code"),
    [
        (quantize.Static, {"percentile": 0.0}, "E110"),
        (quantize.Static, {"samples": 0}, "E110"),
        (quantize.Static, {"weight_bits": 1}, "E110"),
        (quantize.Dynamic, {"weight_bits": 9}, "E110"),
        (quantize.Weights, {"weight_bits": 1}, "E110"),
    ],
)
def test_settings_out_of_range_are_refused(kind: type[Any], settings: dict[str, Any], code: str) -> None:
    with pytest.raises(UserError) as caught:
        kind(**settings)
    assert caught.value.code == code


def test_the_bias_of_a_row_with_tiny_or_no_weights_is_kept() -> None:
    dense = nn.Linear(4, 4)
    with torch.no_grad():
        dense.weight[0] = 1e-9
        dense.weight[1] = 0
        dense.bias[:] = torch.tensor([1.0, 0.3, -2.0, 0.0])
    layer = StaticLayer.quantized(dense, Range(-1.0, 1.0), weight_bits=8)
    inputs = torch.rand(5, 4)
    assert torch.allclose(layer(inputs), dense(inputs), atol=0.02)
    assert torch.allclose(layer(inputs)[:, :2], dense(inputs)[:, :2], atol=1e-4)


def test_the_layers_of_torchs_own_encoder_are_quantized(run: Run) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 3))
    inputs, targets = torch.randn(20, 5, 8), torch.arange(20) % 3
    task = Task(train=(inputs, targets), test=(inputs, targets))
    for step in (quantize.Static(), quantize.Dynamic()):
        model = step(net, task, run)
        projections = {f"0.self_attn.{name}_proj" for name in ("q", "k", "v", "out")}
        assert set(architecture_of(model).replaced) == {"0.self_attn", *projections, "0.linear1", "0.linear2", "2"}
        assert model(inputs).shape == (20, 3)
    told = [left.what for left in left_by_steps(read_events(run.folder))]
    assert {left.why for left in told} == {"products of activations stay in floating point"}


def test_nothing_to_quantize_is_an_error(images: Task, run: Run) -> None:
    for step in (quantize.Static(), quantize.Dynamic(), quantize.Weights(), quantize.Static(include=("fc*",))):
        with pytest.raises(UserError, match="E112"):
            step(nn.Flatten(), images, run)
