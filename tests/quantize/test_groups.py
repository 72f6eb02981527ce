"""Weights in groups of few bits: torch, ONNX and the packed file agree, and each form counts its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import ModelProto, TensorProto
from torch import Tensor, nn

from mirabelle import Run, Task, compress, load, prune, quantize
from mirabelle.artifact.mira import pack, unpack
from mirabelle.errors import UserError
from mirabelle.inspection.layers import layers_of_module, layers_of_onnx
from mirabelle.model.architecture import replace_module, replaced_modules
from mirabelle.quantize import GroupLayer, kernels
from mirabelle.runtime.export import export
from mirabelle.runtime.gates import torch_equals_onnx
from mirabelle.runtime.program import exported_program
from mirabelle.task.batch import Batch
from mirabelle.testing import check_replacement

CASES: dict[str, tuple[Any, Tensor]] = {
    "linear": (lambda: nn.Linear(96, 48), torch.randn(8, 5, 96)),
    "grouped convolution": (lambda: nn.Conv2d(6, 10, 3, groups=2, bias=False), torch.randn(8, 6, 8, 8)),
    "embedding": (lambda: nn.Embedding(50, 96), torch.randint(0, 50, (8, 4))),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("bits", "group_size", "zero_points"), [(2, 0, False), (3, 32, True), (4, 32, False), (4, 40, True), (8, 32, False)]
)
def test_torch_onnx_and_the_packed_file_agree(case: str, bits: int, group_size: int, zero_points: bool) -> None:
    torch.manual_seed(0)
    make, inputs = CASES[case]
    dense = make()
    layer = GroupLayer.quantized(dense, bits, group_size, zero_points=zero_points)
    check_replacement(layer, dense, inputs, tolerance=1e-5)
    model = replace_module(nn.Sequential(dense), "0", layer).eval()
    onnx = export(model, Batch(inputs[:3], torch.zeros(3)))
    gate = torch_equals_onnx(model, onnx, [Batch(inputs, torch.zeros(8))], quantized=False)
    assert gate.passed, gate.detail
    assert unpack(pack(onnx)) == onnx
    (found,) = layers_of_onnx(onnx)
    assert (found.name, found.parameters) == ("0", dense.weight.numel())
    assert found.size_bytes == -(-dense.weight.numel() * {2: 2, 3: 4, 4: 4, 8: 8}[bits] // 8)
    assert layers_of_module(model, None)[0].parameters == sum(tensor.numel() for tensor in dense.parameters())


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("bits", [3, 4])
def test_the_kernel_of_onnx_runtime_multiplies_by_the_same_codes(bits: int, zero_points: bool) -> None:
    torch.manual_seed(0)
    dense, inputs = nn.Linear(100, 24), torch.randn(8, 5, 100)
    model = nn.Sequential(GroupLayer.quantized(dense, bits, 32, zero_points=zero_points, kernel="MatMulNBits")).eval()
    onnx = export(model, Batch(inputs[:3], torch.zeros(3)))
    (node,) = (node for node in ModelProto.FromString(onnx).graph.node if node.op_type == "MatMulNBits")
    assert {attribute.name: attribute.i for attribute in node.attribute}["accuracy_level"] == 1
    gate = torch_equals_onnx(model, onnx, [Batch(inputs, torch.zeros(8))], quantized=False)
    assert gate.passed, gate.detail
    (found,) = layers_of_onnx(onnx, Batch(inputs, torch.zeros(8)))
    assert (found.kind, found.shape, found.macs, found.size_bytes) == ("MatMulNBits", (24, 100), 12_000, 1200)


def test_the_faster_kernel_is_measured_for_each_size_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, inputs = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.Linear(96, 3)), torch.randn(40, 5, 64)
    task = Task(train=(inputs, torch.zeros(40, 5, 3)), test=(inputs, torch.zeros(40, 5, 3)), loss="mse")
    asked: list[tuple[Any, ...]] = []

    def gains(size: Any, *others: Any) -> bool:
        asked.append((size, *others))
        return size[2] == 96 and size[1] == 64

    step = quantize.Weights(weight_bits=4, group_size=32, kernel="measured", batch=3)
    really = kernels._gains((2, 64, 96), 4, 32, 1)
    assert really in (True, False)
    monkeypatch.setattr(kernels, "_gains", gains)
    run = Run(tmp_path)
    for _ in range(2):  # the second time as decided
        model = step(net, task, run)
        chosen = [layer.settings.get("kernel", "float") for layer in replaced_modules(model).values()]
        assert chosen == ["MatMulNBits", "float", "float"]
    assert [size for size, bits, group, _ in asked] == [(15, 64, 96), (15, 96, 96), (15, 96, 3)]
    gate = torch_equals_onnx(model, export(model, task.example()), list(task.test.batches(20)), quantized=False)
    assert gate.passed, gate.detail


def test_zeros_are_seen_in_every_form() -> None:
    torch.manual_seed(0)
    dense = nn.Linear(64, 32, bias=False)
    with torch.no_grad():
        dense.weight[:, ::2] = 0
        dense.weight.abs_()
    for settings in ({}, {"zero_points": True}, {"zero_points": True, "kernel": "MatMulNBits"}):
        layer = GroupLayer.quantized(dense, 4, 32, **settings)
        model = replace_module(nn.Sequential(dense), "0", layer).eval()
        onnx = export(model, Batch(torch.randn(3, 64), torch.zeros(3)))
        assert layers_of_module(model, None)[0].sparsity >= 0.5
        if "kernel" in settings or not settings:  # a zero point of its own makes stored numbers of zeros
            assert layers_of_onnx(onnx)[0].sparsity >= 0.5


def test_a_run_in_groups_is_loaded_again_and_its_gates_hold(blobs: Task, tmp_path: Path) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))

    steps = [prune.Weights(sparsity=0.5), quantize.Weights(weight_bits=3, group_size=16, zero_points=True)]
    result = compress(net(), blobs, steps, out=tmp_path / "run")
    assert all(gate.passed for gate in result.gates.values())
    again = load(net, tmp_path / "run")
    inputs = blobs.test.inputs
    assert torch.equal(again(inputs), result.model(inputs))
    assert float((again[2].codes == 0).float().mean()) >= 0.5
    file = ModelProto.FromString((tmp_path / "run" / "model.onnx").read_bytes())
    assert [t.data_type for t in file.graph.initializer if t.name.endswith("codes")] == [TensorProto.INT4] * 2


def test_embedding_and_output_layer_share_codes_scales_and_zero_points(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(40, 32), nn.Linear(32, 40)
            self.out.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.table(ids).mean(1))

    torch.manual_seed(0)
    ids, targets = torch.randint(0, 40, (60, 3)), torch.arange(60) % 40
    task = Task(train=(ids, targets), test=(ids, targets))
    step = quantize.Weights(weight_bits=4, group_size=16, zero_points=True, kernel="MatMulNBits")
    model: Any = step(Tied(), task, Run(tmp_path))
    for name in ("codes", "scale", "zero_point"):
        assert getattr(model.table, name).data_ptr() == getattr(model.out, name).data_ptr()
    onnx = export(model, task.example())
    tables = [t for t in ModelProto.FromString(onnx).graph.initializer if list(t.dims) == [40, 32]]
    assert [t.data_type for t in tables] == [TensorProto.INT4]
    gate = torch_equals_onnx(model, onnx, list(task.test.batches(25)), quantized=False)
    assert gate.passed, gate.detail


def test_a_program_of_torch_decodes_the_codes() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(GroupLayer.quantized(nn.Linear(40, 3), 4, 16, zero_points=True)).eval(), torch.randn(4, 40)
    program = exported_program(model, inputs)
    torch.testing.assert_close(program.module()(inputs), model(inputs))
    assert "mirabelle" not in str(program.graph)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"weight_bits": 8, "zero_points": True}, "E111"),
        ({"weight_bits": 2, "kernel": "MatMulNBits"}, "E111"),
        ({"weight_bits": 4, "group_size": 48, "kernel": "MatMulNBits"}, "E111"),
        ({"weight_bits": 4, "group_size": -1}, "E110"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], code: str) -> None:
    with pytest.raises(UserError, match=code):
        quantize.Weights(**settings)
