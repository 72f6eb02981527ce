"""Settings of static quantization: one scale per tensor, symmetric activations, corrected biases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from mirabelle import Run, Task, load, quantize, save
from mirabelle.calibration.samples import CalibrationSamples
from mirabelle.model.watch import watch
from mirabelle.numerics import affine
from mirabelle.quantize import RoundedValue, StaticLayer
from mirabelle.quantize.bias_correction import corrected_layers
from mirabelle.runtime.export import export
from mirabelle.runtime.onnxruntime import OnnxSession
from mirabelle.runtime.program import exported_program
from mirabelle.task.batch import Batch
from mirabelle.task.samples import Samples


class Net(nn.Module):
    """Convolutions with and without a norm, depthwise and not, an addition, linear layers with and without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.last = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 6, 1)
        self.hidden, self.head = nn.Linear(6, 12), nn.Linear(12, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = self.last(self.depthwise(x) + x).relu().mean((2, 3))
        out: Tensor = self.head(self.hidden(x).relu())
        return out


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    net = Net().eval()
    assert isinstance(net.norm.running_mean, Tensor)
    net.norm.running_mean.normal_()
    return net


@pytest.fixture
def task() -> Task:
    x = torch.randn(100, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.3
    return Task(train=Samples(x), test=Samples(x))


FORMS = {
    "per tensor": quantize.Static(per_channel=False),
    "symmetric": quantize.Static(symmetric=True),
    "both": quantize.Static(per_channel=False, symmetric=True, weight_bits=5),
    "corrected": quantize.Static(correct_bias=True, weight_bits=4),
}
every_form = pytest.mark.parametrize("step", FORMS.values(), ids=FORMS.keys())


def layers_of(model: nn.Module) -> dict[str, StaticLayer]:
    return {name: one for name, one in model.named_modules() if isinstance(one, StaticLayer)}


def test_per_tensor_one_scale_stands_for_all_outputs(net: nn.Module, task: Task, run: Run) -> None:
    small = FORMS["per tensor"](net, task, run)
    for name in ("last", "hidden", "head"):
        layer, weight = layers_of(small)[name], net.get_submodule(name).weight.detach()
        (scale,) = affine.symmetric_scales(weight.reshape(1, -1), 127).tolist()
        assert layer.scale.shape == ()
        assert float(layer.scale) == pytest.approx(scale)
        assert np.array_equal(layer.codes.numpy(), np.clip(np.round(weight.numpy() / np.float32(scale)), -127, 127))
    proto = ModelProto.FromString(export(small, task.example()))
    sizes = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    read = [node for node in proto.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in sizes]
    assert len(read) == 5 + 4  # weights and biases
    assert all(sizes[node.input[1]].shape == () for node in read)


def test_symmetric_levels_have_their_zero_in_the_middle(net: nn.Module, task: Task, run: Run) -> None:
    small = FORMS["symmetric"](net, task, run)
    points = {name: int(tensor) for name, tensor in small.named_buffers() if name.endswith("zero_point")}
    assert len(points) > 6
    assert set(points.values()) == {128}
    seen: list[float] = []
    step = FORMS["symmetric"]
    batches = task.train.drawn(step.samples, run.seed_for("calibration")).batches(100)
    watch(net, batches, {"first": net.first}, before=lambda run: seen.append(float(run.input.abs().max())))  # type: ignore[dict-item, union-attr]
    assert float(layers_of(small)["first"].input_scale) == pytest.approx(max(seen) / 127, rel=1e-6)


@every_form
def test_torch_and_onnx_runtime_agree_within_one_step(step: quantize.Static, net: nn.Module, task: Task, run: Run) -> None:
    small = step(net, task, run)
    x = task.test.inputs
    seen: dict[str, Tensor] = {}
    watch(small, [x], layers_of(small), before=lambda run: seen.__setitem__(run.name, run.input))
    for name, layer in layers_of(small).items():
        batch = Batch(seen[name], torch.zeros(len(x)))
        given = OnnxSession(export(layer, Batch(seen[name][:2], batch.targets[:2])), 1).outputs_of([batch])[0]
        with torch.no_grad():
            expected = layer(seen[name])
        step_size = 1e-5 * float(expected.abs().max()) if layer.output_scale is None else float(layer.output_scale)
        assert (expected - given).abs().max() <= 1.001 * step_size, name
    with torch.no_grad():
        expected, given = small(x), OnnxSession(export(small, task.example()), 1).outputs_of([task.test.first(100)])[0]
        assert (expected - given).abs().max() < 0.03 * expected.abs().max()
        assert (expected - net(x)).abs().max() < (0.1 if step.weight_bits == 8 else 0.8) * net(x).abs().max()


@every_form
def test_a_saved_model_comes_back(step: quantize.Static, net: nn.Module, task: Task, run: Run, tmp_path: Path) -> None:
    small = step(net, task, run)
    save(small, tmp_path / "saved")
    again, x = load(Net().eval(), tmp_path / "saved"), task.test.inputs
    with torch.no_grad():
        assert torch.equal(again(x), small(x))
    assert {name for name, one in again.named_modules() if isinstance(one, RoundedValue)}


def test_a_program_for_other_runtimes_has_a_scale_for_each_row(net: nn.Module, task: Task, run: Run) -> None:
    small, x = FORMS["per tensor"](net, task, run), task.test.inputs
    with torch.no_grad():
        given = exported_program(small, x[:4]).module()(x[:4])
        assert (given - small(x[:4])).abs().max() < 0.03 * given.abs().max()


def test_corrected_biases_leave_no_more_than_half_a_step_of_mean_error(net: nn.Module, task: Task, run: Run) -> None:
    step = FORMS["corrected"]
    plain, corrected = quantize.Static(weight_bits=4)(net, task, run), step(net, task, run)
    x = task.train.drawn(step.samples, run.seed_for("calibration")).inputs
    due = means(net, {name: "norm" if name == "first" else name for name in layers_of(plain)}, x)
    inputs: dict[str, Tensor] = {}
    watch(corrected, [x], layers_of(corrected), before=lambda run: inputs.__setitem__(run.name, run.input))
    fixed = corrected_layers(corrected, CalibrationSamples.of([x]))
    assert set(fixed) == {"first", "depthwise", "last", "hidden"}
    before = errors(plain, due, x)
    for name, layer in layers_of(corrected).items():
        after = np.abs(mean(layer, inputs[name]) - due[name])
        if name not in fixed:
            continue
        assert layer.bias_scale is not None
        assert (after <= 0.5001 * layer.bias_scale.double().numpy() + 1e-9).all(), name
        assert after.mean() < 0.1 * before[name].mean(), name
    assert torch.equal(layers_of(plain)["first"].codes, layers_of(corrected)["first"].codes)


def test_a_layer_that_runs_twice_keeps_its_bias(task: Task, run: Run) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(192, 192), nn.Linear(192, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.a(self.a(x.flatten(1)).relu()))
            return out

    torch.manual_seed(0)
    net = Twice().eval()
    plain, corrected = quantize.Static(weight_bits=4)(net, task, run), FORMS["corrected"](net, task, run)
    assert torch.equal(layers_of(plain)["a"].bias_codes, layers_of(corrected)["a"].bias_codes)
    assert not torch.equal(layers_of(plain)["b"].bias_codes, layers_of(corrected)["b"].bias_codes)


def mean(layer: StaticLayer, x: Tensor) -> np.ndarray:
    """Of each channel of a layer's result before its activation, by NumPy."""
    with torch.no_grad():
        found = layer.before_rounding(x).double().numpy()
    return np.asarray(found.mean(axis=(0, *range(2, found.ndim))))


def means(net: nn.Module, names: dict[str, str], x: Tensor) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def take(run) -> None:  # type: ignore[no-untyped-def]
        values = run.output.double().numpy()
        found[run.name] = values.mean(axis=(0, *range(2, values.ndim)))

    watch(net, [x], {name: net.get_submodule(other) for name, other in names.items()}, after=take)
    return found


def errors(small: nn.Module, due: dict[str, np.ndarray], x: Tensor) -> dict[str, np.ndarray]:
    inputs: dict[str, Tensor] = {}
    watch(small, [x], layers_of(small), before=lambda run: inputs.__setitem__(run.name, run.input))
    return {name: np.abs(mean(layer, inputs[name]) - due[name]) for name, layer in layers_of(small).items()}
