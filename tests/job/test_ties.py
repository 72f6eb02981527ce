"""Ties through whole runs: each distinct tensor once in every file and count, and one tensor again after loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from onnx import ModelProto, numpy_helper
from safetensors import safe_open
from torch import Tensor, nn

import mirabelle
from mirabelle import Run, Task, Training, artifact, prune, quantize
from mirabelle.errors import UserError
from mirabelle.inspection.measure import count_parameters
from mirabelle.model.state import copied, memory_of
from mirabelle.model.ties import lost_ties
from mirabelle.records.record import record
from mirabelle.report import read_events
from mirabelle.step import Preview, Stage
from mirabelle.training import fit

VOCABULARY, WIDTH = 40, 16
IDS = torch.arange(192).reshape(32, 6) * 7 % VOCABULARY


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.tie()

    def tie(self) -> None:
        self.out.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.relu(self.middle(self.table(ids))).mean(1))


class InOneMemory(Tied):
    def tie(self) -> None:
        self.out.weight.data = self.table.weight.data


class TwoParents(nn.Module):
    """A module under two parents that is called three times, and two buffers that are one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.block = nn.Sequential(nn.Linear(WIDTH, 24), nn.ReLU(), nn.Linear(24, WIDTH))
        self.again = nn.ModuleDict({"x": self.block})
        self.register_buffer("shift", torch.linspace(-1, 1, WIDTH))
        self.register_buffer("same", self.shift)
        self.register_buffer("passing", self.shift, persistent=False)
        self.out = nn.Linear(WIDTH, 5)

    def forward(self, ids: Tensor) -> Tensor:
        values = self.table(ids) + self.shift + self.same + self.passing
        for block in (self.block, self.again["x"], self.block):
            values = values + block(values)
        return self.out(values.mean(1))


class Listed(nn.Module):
    """Parameters in a list and a dictionary of torch, which are those of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.one = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.list = nn.ParameterList([self.one.weight, nn.Parameter(torch.eye(WIDTH))])
        self.named = nn.ParameterDict({"again": self.list[1]})
        self.out = nn.Linear(WIDTH, 5)

    def forward(self, ids: Tensor) -> Tensor:
        values = torch.relu(self.one(self.table(ids))) @ self.list[0]
        return self.out((values @ self.list[1] @ self.named["again"]).mean(1))


KINDS = [Tied, InOneMemory, TwoParents, Listed]
STEPS = {
    "weights": prune.Weights(sparsity=0.5, train=Training(epochs=2)),
    "growing": prune.Weights(sparsity=0.5, schedule="cubic", train=Training(epochs=2)),
    "channels": prune.Channels(sparsity=0.25),
    "dynamic": quantize.Dynamic(),
    "codes": quantize.Weights(),
}


def made(make: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = make().eval()
    return model


def task_for(model: nn.Module) -> Task:
    with torch.no_grad():
        targets = model(IDS).argmax(1)
    return Task(train=(IDS, targets), test=(IDS, targets))


def ties(model: nn.Module) -> list[int]:
    """For each name in the state dict, the position of the first name of the same tensor."""
    memories = [memory_of(tensor) for tensor in model.state_dict().values()]
    return [memories.index(memory) for memory in memories]


def distinct(model: nn.Module) -> int:
    """Elements of distinct parameters and codes, counted by their memory."""
    held = [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.dtype == torch.int8 and buffer.ndim)]
    codes = [buffer for name, buffer in model.named_buffers() if name.endswith("bias")]
    return sum({memory_of(tensor): tensor.numel() for tensor in (*held, *codes)}.values())


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("make", KINDS)
def test_ties_stay_ties_through_a_step_a_file_and_a_training(make: type[nn.Module], step: Any, tmp_path: Path) -> None:
    dense = made(make)
    task, run = task_for(dense), Run(tmp_path / "run")
    model = step(dense, task, run)
    assert ties(model) == ties(dense) or len(ties(model)) != len(ties(dense))
    assert count_parameters(model)[0] == distinct(model)
    artifact.save(model, tmp_path)
    loaded = artifact.load(lambda: made(make), tmp_path)
    assert ties(loaded) == ties(model)
    with torch.no_grad():
        assert torch.equal(loaded(IDS), model(IDS))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        stored = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 (not a dictionary)
    large = [tensor.numpy().tobytes() for tensor in stored if tensor.numel() >= WIDTH]
    assert len(set(large)) == len(large)
    if isinstance(step, prune.Weights):
        trained = fit(copied(loaded), task, Training(epochs=1), Run(tmp_path / "more"))
        assert ties(trained) == ties(model)
        assert count_parameters(trained)[1] <= count_parameters(model)[1]  # zeros stay zeros


@pytest.mark.parametrize("make", [Tied, TwoParents])
def test_a_run_has_every_tensor_once_in_every_file(make: type[nn.Module], tmp_path: Path) -> None:
    dense = made(make)
    steps: list[Any] = [prune.Weights(sparsity=0.5, train=Training(epochs=1)), quantize.Dynamic()]
    result = mirabelle.compress(dense, task_for(dense), steps, out=tmp_path)
    assert result.start.parameters == result.profile.parameters == sum(one.numel() for one in dense.parameters())
    assert all(gate.passed for gate in result.gates.values())
    found = ModelProto.FromString((tmp_path / "model.onnx").read_bytes()).graph.initializer
    large = [numpy_helper.to_array(tensor).tobytes() for tensor in found if len(tensor.raw_data) >= 512]
    assert len(set(large)) == len(large)
    loaded: Any = mirabelle.load(make, tmp_path)
    assert loaded.out.codes is loaded.table.codes if make is Tied else loaded.block is loaded.again["x"]
    assert result.profile.size_bytes.torch < result.start.size_bytes.torch
    assert not [event for event in read_events(tmp_path) if event["event"] == "warning" and "one tensor" in event["text"]]


@record
class Separates:
    """Gives the output layer a table of its own, against all advice."""

    stage: ClassVar[Stage] = "thin"

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        del task, run
        separate: Any = copied(model)
        separate.out.weight = nn.Parameter(separate.out.weight.detach() * 0.5)
        return separate

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        return Preview(self(model, task, run))


def test_a_step_that_separates_what_was_tied_cannot_be_loaded_wrong(tmp_path: Path) -> None:
    dense = made(Tied)
    model = Separates()(dense, task_for(dense), Run(tmp_path / "run"))
    assert lost_ties(dense, model) == [("table.weight", "out.weight")]
    artifact.save(model, tmp_path)
    with pytest.raises(UserError, match=r"table.weight and out.weight differ, the model has one tensor for both"):
        artifact.load(Tied, tmp_path)


def test_a_step_finds_nothing_left_after_another_took_the_tied_table(tmp_path: Path) -> None:
    dense = made(Tied)
    model = quantize.Dynamic()(dense, task_for(dense), Run(tmp_path / "run"))
    with pytest.raises(UserError, match=r"no Linear, .*Embedding.* is left to quantize; replaced before: ") as caught:
        quantize.Weights()(model, task_for(dense), Run(tmp_path / "run"))
    assert caught.value.remedy == "remove this step"
