"""Between integer kernels stands no conversion: additions, concatenations, pools and activations are rounded, too."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnxruntime
import pytest
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.nn import functional

from mirabelle import Run, Task, load, quantize, save
from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of
from mirabelle.quantize import RoundedValue
from mirabelle.runtime.export import export
from mirabelle.runtime.onnxruntime import OnnxSession
from mirabelle.sources.models.by_name import model_from


class Residual(nn.Module):
    """Additions with and without a ReLU behind them, a shortcut that picks and pads, a mean at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.c = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        x = functional.relu(self.norm(self.a(x)) + x)
        x = self.b(x) + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = functional.relu(self.c(x) + x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Branches(nn.Module):
    """Concatenations, pools, gates and activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.gate, self.last, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.first(x), 2)
        x = torch.cat([functional.leaky_relu(self.left(x), 0.1), functional.relu(self.right(x))], 1)
        x = x * torch.sigmoid(self.gate(functional.adaptive_avg_pool2d(x, 1)))
        x = functional.avg_pool2d(x, 3, stride=1, padding=1)
        out: Tensor = self.head(functional.relu(self.last(x)).mean((2, 3)))
        return out


NETS = {
    Residual: {"relu_2", "add_3", "relu_5", "mean_6"},
    Branches: {"leaky_relu_0", "cat_2", "adaptive_avg_pool2d_3", "sigmoid_4", "mul_5", "avg_pool2d_6", "mean_8"},
}
every_net = pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)


@pytest.fixture
def task() -> Task:
    x = torch.randn(300, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    y = torch.arange(300) % 4
    return Task(train=(x, y), test=(x, y))


def quantized(kind: type[nn.Module], task: Task, run: Run) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    net = kind().eval()
    return net, quantize.Static(samples=200)(net, task, run)


def kinds_in_session(file: bytes, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in ModelProto.FromString((folder / "optimized.onnx").read_bytes()).graph.node)


@every_net
def test_values_between_layers_are_rounded_where_integers_are_read(kind: type[nn.Module], task: Task, run: Run) -> None:
    net, small = quantized(kind, task, run)
    replaced = {
        name.partition(".")[2]: entry for name, entry in architecture_of(small).replaced.items() if "call_results" in name
    }
    assert set(replaced) == NETS[kind]
    assert {entry.use for entry in replaced.values()} == {"quantize.RoundedValue"}
    x = task.test.inputs
    assert (small(x) - net(x)).abs().max() < 0.06 * net(x).abs().max()


@every_net
def test_torch_and_onnx_runtime_agree_and_the_model_comes_back(
    kind: type[nn.Module], task: Task, run: Run, tmp_path: Path
) -> None:
    _, small = quantized(kind, task, run)
    x = task.test.inputs
    with torch.inference_mode():
        expected = small(x)
        given = OnnxSession(export(small, task.example()), 1).outputs_of([task.test.first(300)])[0]
    assert (expected.argmax(1) == given.argmax(1)).float().mean() >= 0.995
    assert (expected - given).abs().max() < 0.02 * expected.abs().max()
    save(small, tmp_path)
    assert torch.equal(load(kind(), tmp_path)(x), expected)


def test_every_addition_is_one_of_integers(task: Task, run: Run, tmp_path: Path) -> None:
    _, small = quantized(Residual, task, run)
    kinds = kinds_in_session(export(small, task.example()), tmp_path)
    assert (kinds["QLinearConv"], kinds["QLinearAdd"], kinds["Add"], kinds["Relu"]) == (4, 3, 0, 0)


@every_net
def test_a_model_from_an_onnx_file_becomes_the_same_integers(
    kind: type[nn.Module], task: Task, run: Run, tmp_path: Path
) -> None:
    net, small = quantized(kind, task, run)
    (tmp_path / "net.onnx").write_bytes(export(net, task.example()))
    again = quantize.Static(samples=200)(model_from(str(tmp_path / "net.onnx"), {}, tmp_path).eval(), task, run)
    same, found = (kinds_in_session(export(one, task.example()), tmp_path) for one in (small, again))
    integers = {name: count for name, count in same.items() if name.startswith("QLinear")}
    assert sum(integers.values()) >= 7
    assert {name: count for name, count in found.items() if name.startswith("QLinear")} == integers
    assert not found["Add"] + found["Relu"] + found["Concat"] + found["Mul"]


def test_concatenations_pools_and_gates_are_of_integers(task: Task, run: Run, tmp_path: Path) -> None:
    _, small = quantized(Branches, task, run)
    kinds = kinds_in_session(export(small, task.example()), tmp_path)
    fused = ("Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu", "Mul")
    assert {kind: (kinds[kind], kinds[f"QLinear{kind}"]) for kind in fused} == dict.fromkeys(fused, (0, 1)) | {
        "GlobalAveragePool": (0, 2)
    }
    assert (kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (1, 0)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_of_codes_is_one_operator(approximate: str, task: Task, run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.GELU(approximate), nn.Conv2d(8, 8, 3), nn.GELU(approximate), nn.AdaptiveAvgPool2d(1)]
    net = nn.Sequential(*body, nn.Flatten(), nn.Linear(8, 4)).eval()
    small = quantize.Static(samples=200)(net, task, run)
    file = export(small, task.example())
    kinds = kinds_in_session(file, tmp_path)
    assert (kinds["Gelu"], kinds["Erf"], kinds["Tanh"], kinds["DequantizeLinear"]) == (2, 0, 0, 2)
    (tmp_path / "small.onnx").write_bytes(file)
    again = model_from(str(tmp_path / "small.onnx"), {}, tmp_path).eval()
    with torch.inference_mode():
        expected = small(task.test.inputs)
        for given in (OnnxSession(file, 1).outputs_of([task.test.first(300)])[0], again(task.test.inputs)):
            assert (expected - given).abs().max() < 0.02 * expected.abs().max()
    plain = ModelProto.FromString(export(net, task.example()))
    assert plain.opset_import[0].version == 18, "the operator is newer, and needed only behind codes"


def test_the_limits_of_relu6_are_those_of_codes(task: Task, run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.ReLU6(), nn.Conv2d(12, 12, 3, groups=12), nn.BatchNorm2d(12), nn.ReLU6(),
        nn.AvgPool2d(2), nn.Conv2d(12, 8, 1), nn.Hardtanh(0.0, 6.0), nn.Flatten(), nn.Linear(288, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        net[0].weight.mul_(9)
        net[2].weight.mul_(6)
    small = quantize.Static(samples=200)(net, task, run)
    file = export(small, task.example())
    kinds = kinds_in_session(file, tmp_path)
    assert (kinds["QLinearConv"], kinds["Clip"], kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (3, 0, 1, 0)
    assert small[2].settings["output"] == "relu6"
    x = task.test.inputs
    assert nn.Sequential(*net[:2])(x).detach().max() == 6
    with torch.inference_mode():
        expected = small(x)
        assert (expected - net(x)).abs().max() < 0.05 * net(x).abs().max()
        given = OnnxSession(file, 1).outputs_of([task.test.first(300)])[0]
    assert (expected.argmax(1) == given.argmax(1)).float().mean() >= 0.995


def test_a_rounded_value_is_the_nearest_of_256_levels() -> None:
    from mirabelle.calibration.ranges import Range

    value = RoundedValue.quantized(nn.Identity(), Range(-1.0, 2.0))
    x = torch.linspace(-1, 2, 1000)
    levels = (x.double() / value.scale.double()).round() * value.scale.double()
    assert value(x).double().numpy() == pytest.approx(levels.numpy(), abs=1e-6)
    assert float((value(x) - x).abs().max()) <= float(value.scale) / 2 + 1e-6


def test_values_that_are_not_finite_are_told_with_the_layer(task: Task, run: Run) -> None:
    net = Residual()
    with torch.no_grad():
        net.a.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r'E121.*"\w+" is not finite on the calibration data'):
        quantize.Static(samples=50)(net, task, run)


def test_constant_activations_are_exact(task: Task, run: Run) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 4)).eval()
    with torch.no_grad():
        net[0].bias.fill_(-1e3)
    small = quantize.Static(samples=50)(net, task, run)
    assert torch.allclose(small(task.test.inputs), net(task.test.inputs), atol=0.02)


def test_a_quantized_model_is_not_quantized_again(task: Task, run: Run) -> None:
    _, small = quantized(Residual, task, run)
    with pytest.raises(UserError, match=r"E112.*is left to quantize; replaced before"):
        quantize.Static()(small, task, run)
