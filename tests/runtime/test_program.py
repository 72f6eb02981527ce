"""Programs of torch.export: plain torch runs them, and they give what the ONNX file gives."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, Task, exported_program, quantize
from mirabelle.errors import UserError
from mirabelle.runtime.export import export
from mirabelle.runtime.program import LoadedProgram, program_bytes
from mirabelle.runtime.runtime import default_runtime
from mirabelle.step import Step
from mirabelle.task.batch import Batch

STEPS: list[Step] = [
    quantize.Static(),
    quantize.Static(weight_bits=4),
    quantize.Dynamic(),
    quantize.Dynamic(granularity="tensor"),
    quantize.Weights(),
]
ALONE = """
import builtins, json, sys
real = builtins.__import__
def guarded(name, *args, **kwargs):
    assert name.partition(".")[0] not in ("mirabelle", "onnx", "onnxruntime"), name
    return real(name, *args, **kwargs)
builtins.__import__ = guarded
import torch
import torch.ao.quantization.fx
program = torch.export.load(sys.argv[1])
inputs = torch.load(sys.argv[2])
print(json.dumps([program.module()(inputs[:count]).tolist() for count in (1, 7, 50)]))
"""


def by_onnx(model: nn.Module, inputs: Tensor) -> np.ndarray:
    session = default_runtime().load(export(model, Batch(inputs[:2], torch.zeros(2))), 1)
    return np.asarray(session.run(session.feed(inputs))[0])


def worst(given: Tensor, expected: np.ndarray) -> float:
    """The largest difference relative to the largest value."""
    return float(np.abs(given.detach().numpy() - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_the_file_gives_what_onnx_runtime_gives_for_any_batch_and_holds_the_codes(
    step: Step, cnn: nn.Module, images: Task, run: Run
) -> None:
    model, inputs = step(cnn, images, run), images.test.inputs
    program = exported_program(model, images.example().inputs)
    loaded, expected = LoadedProgram(program_bytes(program)), by_onnx(model, inputs)
    for count in (1, 7, 50):
        own = expected[:count] if step != quantize.Dynamic(granularity="tensor") else by_onnx(model, inputs[:count])
        assert worst(loaded(inputs[:count]), own) < 0.02  # a tie in rounding moves an activation by one of 256 levels
    operators = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert {name.partition(".")[0] for name in operators} <= {"aten", "quantized_decomposed", "<built-in function getitem>"}
    assert "quantized_decomposed.dequantize_per_channel.default" in operators
    dtypes = {name: tensor.dtype for name, tensor in program.state_dict.items()}
    assert torch.int8 in (dtypes.get("4.codes"), dtypes.get("4.codes_by_row"))
    assert "4.weight" not in dtypes


def test_without_rounded_activations_the_numbers_are_those_of_torch(cnn: nn.Module, images: Task, run: Run) -> None:
    model = quantize.Weights()(cnn, images, run)
    for one in (cnn, model):
        given = exported_program(one, images.example().inputs).module()(images.test.inputs)
        assert worst(given, one(images.test.inputs).detach().numpy()) < 1e-6


def test_plain_torch_runs_the_file(cnn: nn.Module, images: Task, tmp_path: Path) -> None:
    model, inputs = quantize.Static()(cnn, images, Run(tmp_path / "run")), images.test.inputs
    (tmp_path / "m.pt2").write_bytes(program_bytes(exported_program(model, images.example().inputs)))
    torch.save(inputs, tmp_path / "inputs.pt")
    command = [sys.executable, "-c", ALONE, tmp_path / "m.pt2", tmp_path / "inputs.pt"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    expected = by_onnx(model, inputs)
    for given, count in zip(json.loads(output), (1, 7, 50), strict=True):
        assert worst(torch.tensor(given), expected[:count]) < 0.02


def test_the_file_names_no_files_of_this_machine_and_holds_no_samples(cnn: nn.Module, images: Task, run: Run) -> None:
    data = program_bytes(exported_program(quantize.Static()(cnn, images, run), images.example().inputs))
    with zipfile.ZipFile(BytesIO(data)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    assert not [name for name, part in parts.items() if b".py" in part]
    ((args, _),) = [torch.load(BytesIO(part)) for name, part in parts.items() if "sample_inputs" in name]
    assert all(bool((tensor == 1).all()) for tensor in args)


def test_a_table_that_two_layers_read_is_stored_once(run: Run) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.score = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
            self.score.weight = self.table.weight

        def forward(self, tokens: Tensor) -> Tensor:
            out: Tensor = self.score(torch.tanh(self.table(tokens)).mean(1))
            return out

    torch.manual_seed(0)
    tokens = torch.randint(0, 50, (40, 6))
    task = Task(train=(tokens, tokens[:, 0]), test=(tokens, tokens[:, 0]))
    for step in (quantize.Weights(), quantize.Dynamic()):
        model = step(Tied(), task, run)
        program = exported_program(model, tokens)
        assert worst(LoadedProgram(program_bytes(program))(tokens), by_onnx(model, tokens)) < 0.02
        tables = {tensor.data_ptr() for tensor in program.state_dict.values() if tensor.numel() == 400}
        assert len(tables) == 1


def test_named_inputs_keep_their_names_and_a_free_number_of_tokens(run: Run) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(30, 16), nn.Linear(16, 3)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            mask = attention_mask.unsqueeze(-1)
            out: Tensor = self.head((self.table(input_ids) * mask).sum(1) / mask.sum(1))
            return out

    torch.manual_seed(0)
    inputs = {"input_ids": torch.randint(0, 30, (40, 9)), "attention_mask": torch.ones(40, 9, dtype=torch.int64)}
    task = Task(train=(inputs, torch.arange(40) % 3), test=(inputs, torch.arange(40) % 3))
    model = quantize.Static()(Reader(), task, run)
    loaded = LoadedProgram(program_bytes(exported_program(model, inputs)))
    longer = {"input_ids": torch.randint(0, 30, (3, 17)), "attention_mask": torch.ones(3, 17, dtype=torch.int64)}
    assert worst(loaded(**longer), model(**longer).detach().numpy()) < 0.02


def test_a_model_that_torch_cannot_export_is_refused(images: Task) -> None:
    class Chooses(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs * 2 if inputs.sum() > 0 else inputs

    class Fixed(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs + torch.zeros(2, 1, 8, 8)

    for model in (Chooses(), Fixed()):
        with pytest.raises(UserError, match=r"E121.*torch\.export cannot export the model") as caught:
            exported_program(model, images.test.inputs[:2])
        assert "\n" not in caught.value.message
