"""`quantize.Half`: half the bytes, the same numbers in torch and ONNX Runtime, and what has no form in half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, Task, compress, load, pack, prune, quantize, save, unpack
from mirabelle.errors import UserError
from mirabelle.inspection.measure import count_parameters, multiply_accumulates
from mirabelle.model.architecture import replaced_module_names
from mirabelle.runtime.export import export
from mirabelle.runtime.program import exported_program
from mirabelle.runtime.runtime import default_runtime
from mirabelle.sources.models.native import plain_tensors
from mirabelle.testing import check_replacement, check_step

Precision = Literal["float16", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float16", "bfloat16")


class Words(nn.Module):
    """Words, a convolution over them, and an output layer that may share the table."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.conv = nn.Embedding(200, 32), nn.Conv1d(32, 32, 3, padding=1)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 200, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(self.table(ids).transpose(1, 2)).relu().mean(2)))


def words() -> Task:
    ids = torch.randint(0, 200, (60, 6), generator=torch.Generator().manual_seed(0))
    return Task(train=(ids, ids[:, 0]), test=(ids, ids[:, 0]))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_torch_and_onnx_runtime_compute_alike_and_the_file_has_half_the_bytes(precision: Precision, tmp_path: Path) -> None:
    task, dense = words(), Words().eval()
    half = quantize.Half(precision=precision)(dense, task, Run(tmp_path))
    ids = task.test.inputs
    with torch.no_grad():
        due = Words().eval()
        for parameter in (due.table.weight, due.conv.weight):
            parameter.copy_(parameter.to(getattr(torch, precision)).float())
        torch.testing.assert_close(half(ids), due(ids), rtol=0, atol=0)
    files = [export(model, task.example()) for model in (dense, half)]
    outputs = default_runtime().load(files[1], 1)(ids)
    assert isinstance(outputs, Tensor)
    torch.testing.assert_close(outputs, half(ids), rtol=1e-4, atol=1e-5)
    weights = 2 * (200 * 32 + 32 * 32 * 3)
    assert len(files[0]) - len(files[1]) == pytest.approx(weights, rel=0.05)
    graph = onnx.ModelProto.FromString(files[1]).graph
    kinds = [tensor.data_type for tensor in graph.initializer if np.prod(tensor.dims) > 1000]
    assert kinds == [getattr(onnx.TensorProto, precision.upper())] * 2  # the table is stored once
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert count_parameters(half)[0] == count_parameters(dense)[0]
    assert multiply_accumulates(half, task.example()) == multiply_accumulates(dense, task.example())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_packs_and_loads_it(precision: Precision, tmp_path: Path) -> None:
    task = words()
    result = compress(Words(), task, [quantize.Half(precision=precision)], out=tmp_path / "run")
    assert all(gate.passed for gate in result.gates.values())
    back = load(Words, tmp_path / "run").eval()
    with torch.no_grad():
        assert torch.equal(back(task.test.inputs), result.model.eval()(task.test.inputs))
    assert back.head.values is back.table.values
    onnx_file = tmp_path / "run" / "model.onnx"
    assert unpack(pack(onnx_file.read_bytes())) == onnx_file.read_bytes()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_keeps_the_contracts(precision: Precision, tmp_path: Path) -> None:
    task = words()
    check_step(quantize.Half(precision=precision), Words(), task)
    half = quantize.Half(precision=precision)(Words(), task, Run(tmp_path))
    check_replacement(half.conv, Words().conv, torch.randn(4, 32, 6))
    assert plain_tensors(half)["conv.weight"].dtype == torch.float32
    program = exported_program(half, task.example().inputs)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(task.test.inputs), half(task.test.inputs), rtol=1e-5, atol=1e-6)


def test_what_is_beyond_the_range_stays_float32_and_is_told(tmp_path: Path) -> None:
    model = Words(tied=False)
    with torch.no_grad():
        model.head.weight[0, 0], model.conv.weight[0, 0, 0] = 65_521.0, 1e-9  # rounded, 65,520 is the first that is infinite
    preview = quantize.Half().preview(model, words(), Run(tmp_path))
    told = " ".join(preview.description)
    assert "head.weight" in told
    assert "its largest weight, 65,521, is beyond 65,504, the largest number of float16" in told
    assert "conv: 1 weights that were not 0 are 0 in float16" in told
    assert replaced_module_names(preview.model) == ["table", "conv"]
    assert isinstance(preview.model.head, nn.Linear)
    wide = quantize.Half(precision="bfloat16").preview(model, words(), Run(tmp_path / "wide"))
    assert "head" in replaced_module_names(wide.model)
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match=r'E121.*weight of layer "head" is not finite'):
        quantize.Half()(model, words(), Run(tmp_path))


def test_a_weight_with_another_holder_stays_float32_and_coded_layers_stay_coded(tmp_path: Path) -> None:
    preview = quantize.Half(exclude=("head",)).preview(Words(), words(), Run(tmp_path))
    assert replaced_module_names(preview.model) == ["conv"]
    assert "are one tensor, and head is excluded" in " ".join(preview.description)
    coded = quantize.Dynamic()(Words(tied=False), words(), Run(tmp_path / "coded"))
    both = quantize.Half()(coded, words(), Run(tmp_path / "both"))
    save(both, tmp_path / "saved")
    back = load(lambda: Words(tied=False), tmp_path / "saved")
    assert {type(back.head).__name__, type(back.conv).__name__} == {"TokenLayer", "HalfLayer"}
    with pytest.raises(UserError, match=r"E112.*is left to quantize; replaced before"):
        quantize.Half()(both, words(), Run(tmp_path / "again"))


def test_zeros_of_a_pruned_model_stay_zeros(tmp_path: Path) -> None:
    pruned = prune.Weights(sparsity=0.5)(Words(tied=False), words(), Run(tmp_path))
    half = quantize.Half()(pruned, words(), Run(tmp_path / "half"))
    assert count_parameters(half)[1] == count_parameters(pruned)[1] < count_parameters(pruned)[0]
