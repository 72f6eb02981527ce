"""Models that read `layer.weight` themselves: the layer is quantized, or left and named, and the file computes the same."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle import Run, Task, artifact, quantize
from mirabelle.model.architecture import architecture_of, replaced_modules
from mirabelle.report import read_events
from mirabelle.runtime.export import export
from mirabelle.runtime.runtime import default_runtime

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
IDS = torch.arange(120).reshape(20, 6) % 50
STEPS = [quantize.Weights(), quantize.Dynamic(), quantize.Dynamic(granularity="tensor"), quantize.Static()]


class ReadsType(nn.Module):
    """Casts to the type of a layer's weight first, as T5 does, and asks for its sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer, self.out = nn.Embedding(50, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        values = self.table(ids)
        if isinstance(self.layer.weight, Tensor) and values.dtype != self.layer.weight.dtype:
            values = values.to(self.layer.weight.dtype)
        assert self.layer.bias is None
        return self.out(self.layer(values).mean(1)).reshape(-1, self.out.out_features)


class ReadsTable(nn.Module):
    """The output layer is the table, read past its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(50, 16), nn.Linear(16, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(torch.relu(self.layer(self.table(ids))), self.table.weight).mean(1)


class Standardized(nn.Module):
    """A convolution that is never called: its weight is standardized first."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.convolution, self.out = nn.Embedding(50, 16), nn.Conv1d(16, 8, 3), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        weight = self.convolution.weight
        weight = (weight - weight.mean((1, 2), keepdim=True)) / (weight.std((1, 2), keepdim=True) + 1e-5)
        return self.out(F.conv1d(self.table(ids).transpose(1, 2), weight, self.convolution.bias).mean(2))


class Encoder(nn.Module):
    """Torch's own encoder, with padding: its fused kernels take weights from layers without calling them."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.table, self.encoder, self.out = nn.Embedding(50, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        padding = torch.arange(6) >= 4 + ids[:, :1] % 3
        values = self.encoder(self.table(ids), src_key_padding_mask=padding)
        return self.out(values[:, 0])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.attention = nn.Embedding(50, 16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        values = self.table(ids)
        return self.out(self.attention(values, values, values, need_weights=False)[0].mean(1))


def t5() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)

    class Encoded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.t5, self.out = transformers.T5EncoderModel(config), nn.Linear(16, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.t5(input_ids=ids).last_hidden_state.mean(1))

    return Encoded()


def task_of(model: nn.Module) -> Task:
    with torch.no_grad():
        targets = model.eval()(IDS).argmax(1)
    return Task(train=(IDS, targets), test=(IDS, targets))


@pytest.mark.parametrize("step", STEPS, ids=["weights", "token", "tensor", "static"])
@pytest.mark.parametrize(
    "make", [ReadsType, ReadsTable, Standardized, Encoder, Attention, pytest.param(t5, marks=pytest.mark.slow)]
)
def test_torch_and_the_file_compute_with_the_quantized_weight(make: Any, step: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make()
    task, run = task_of(model), Run(tmp_path)
    result = step(model, task, run).eval()
    with torch.no_grad():
        dense, due = model(IDS).numpy(), result(IDS).numpy()
    given = np.asarray(default_runtime().load(export(result, task.example()), threads=1).outputs_of([task.test.first(20)])[0])
    assert np.abs(given - due).max() < 2e-2 * np.abs(due).max()  # a rounding tie that falls the other way
    assert np.abs(due - dense).max() < 0.15 * np.abs(dense).max()
    assert not np.array_equal(due, dense)
    artifact.save(result, tmp_path)
    with torch.no_grad():
        assert np.array_equal(artifact.load(model, tmp_path)(IDS).numpy(), due)
    wanted = {name for name, module in model.named_modules() if type(module) in step.layers()}
    told = [part for event in read_events(run.folder) if event["event"] == "left alone" for part in event["parts"]]
    left = {name for part in told for name in part["names"]}
    assert wanted == {name for name in wanted if name in architecture_of(result).replaced or f"{name}.weight" in left}


def test_the_layers_of_torchs_encoder_are_called_also_without_gradients(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Encoder()
    result = quantize.Dynamic()(model, task_of(model), Run(tmp_path)).eval()
    assert {"encoder.layers.0.linear1", "encoder.layers.1.linear2"} <= architecture_of(result).replaced.keys()
    with torch.no_grad():
        fused = result(IDS)
    assert torch.equal(fused, result(IDS))


@pytest.mark.parametrize("step", STEPS, ids=["weights", "token", "tensor", "static"])
def test_quantized_models_are_pickled_and_copied(step: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 8), nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    result = step(model, task_of(model), Run(tmp_path)).eval()
    torch.save(result, tmp_path / "whole.pt")
    torch.save(result.state_dict(), tmp_path / "state.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=False)
    for twin in (whole, copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert torch.equal(twin(IDS), result(IDS))
        assert architecture_of(twin) == architecture_of(result)
        assert replaced_modules(twin).keys() == replaced_modules(result).keys()
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    artifact.save(result, tmp_path)
    again = artifact.load(model, tmp_path)
    again.load_state_dict(loaded)
    assert torch.equal(again(IDS), result(IDS))
