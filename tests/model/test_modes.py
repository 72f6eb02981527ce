"""What runs a model that belongs to the caller leaves each of its modules in the mode that it had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, Task
from mirabelle.calibration.ranges import activation_ranges
from mirabelle.distill import Guided
from mirabelle.inspection.layers import layers_of_module
from mirabelle.inspection.measure import exported, measure, multiply_accumulates
from mirabelle.inspection.sensitivity import sensitivity_of
from mirabelle.inspection.structure import structure_of
from mirabelle.model.state import in_eval_mode
from mirabelle.objectives import SoftTargets
from mirabelle.prune.recovery import reconstruct, reestimate_batch_norm
from mirabelle.runtime.export import export
from mirabelle.runtime.gates import first_differing_layer, same_outputs, torch_equals_onnx
from mirabelle.scores import Taylor
from mirabelle.scores.evidence import evidence_for
from mirabelle.task.samples import Stream
from mirabelle.training import evaluate, outputs_of
from mirabelle.training.teacher import guidance
from mirabelle.training.teacher_targets import answered


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Sequential(nn.Linear(12, 12), nn.Dropout()), nn.Linear(12, 3)
    )


def frozen_norm() -> nn.Sequential:
    """A model in training mode whose batch norm keeps its statistics."""
    model = net().train()
    model[1].eval()
    return model


def monte_carlo_dropout() -> nn.Sequential:
    """A model in eval mode whose dropout is on."""
    model = net().eval()
    model[3][1].train()
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def onnx_of(model: nn.Module, task: Task) -> bytes:
    return export(model, task.example(), task.labels)


def guided(model: nn.Module, task: Task) -> None:
    batch = task.train.first(10)
    with Guided(net(), model, 1.0 * SoftTargets(), (batch.inputs, batch.targets)) as loss:
        loss(loss._model(batch.inputs), batch.targets)


def live(model: nn.Module, task: Task, run: Run) -> None:
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(task.train.inputs, task.train.targets), batch_size=32, shuffle=True
    )
    guidance(model, Stream(loader), run)(task.train.first(4))


USES: dict[str, Callable[[nn.Module, Task, Run], Any]] = {
    "evaluate": lambda model, task, run: evaluate(model, task.test, task),
    "outputs_of": lambda model, task, run: outputs_of(model, task.test),
    "measure": lambda model, task, run: measure(model, task, task.test, exported(model, task)),
    "multiply_accumulates": lambda model, task, run: multiply_accumulates(model, task.example()),
    "layers_of_module": lambda model, task, run: layers_of_module(model, task.example()),
    "structure_of": lambda model, task, run: structure_of(model, task.example()),
    "sensitivity_of": lambda model, task, run: sensitivity_of(model, task, samples=20, sparsities=(0.5,)),
    "export": lambda model, task, run: onnx_of(model, task),
    "torch_equals_onnx": lambda model, task, run: torch_equals_onnx(
        model, onnx_of(model, task), [task.test.first(4)], quantized=False
    ),
    "same_outputs": lambda model, task, run: same_outputs(net(), model, task.test.first(4)),
    "first_differing_layer": lambda model, task, run: first_differing_layer(
        model, onnx_of(model, task), task.test.first(4), 1e-4
    ),
    "activation_ranges": lambda model, task, run: activation_ranges(model, ["0"], [task.test.first(4)], "min-max", 99.9),
    "evidence_for": lambda model, task, run: evidence_for(Taylor(), model, task, ["0.weight"]),
    "reestimate_batch_norm": lambda model, task, run: reestimate_batch_norm(model, [task.train.first(20)]),
    "reconstruct": lambda model, task, run: reconstruct(model, model, [task.train.first(20)]),
    "a teacher whose outputs are kept": lambda model, task, run: guidance(model, task.train, run),
    "a teacher of a stream": live,
    "a teacher's answers": lambda model, task, run: answered(task.with_teacher(model), run),
    "a teacher in a loop of one's own": lambda model, task, run: guided(model, task),
}


@pytest.mark.parametrize("made", [frozen_norm, monte_carlo_dropout])
@pytest.mark.parametrize("use", USES)
def test_every_module_keeps_its_mode(use: str, made: Callable[[], nn.Module], blobs: Task, tmp_path: Path) -> None:
    model, seen = made(), set()
    model[1].register_forward_hook(lambda module, *_: seen.add(module.training))
    before = modes(model)
    USES[use](model, blobs, Run(tmp_path))
    assert modes(model) == before
    assert True not in seen, "it runs in eval mode"


@pytest.mark.parametrize("use", ["evaluate", "measure", "a teacher of a stream"])
def test_every_module_keeps_its_mode_where_the_model_fails(use: str, blobs: Task, tmp_path: Path) -> None:
    model = frozen_norm()
    before = modes(model)
    model[4] = nn.Linear(5, 3)
    with pytest.raises(Exception, match=r"shapes cannot be multiplied|cannot export"):
        USES[use](model, blobs, Run(tmp_path))
    assert modes(model) == before


class Adapter(nn.Module):
    """Adds a product to a weight while the module is in eval mode, as low-rank adapters do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.change, self.merged = torch.ones(()), 0.5, False

    def train(self, mode: bool = True) -> Adapter:
        if self.merged == mode:
            self.weight, self.merged = self.weight + (-self.change if mode else self.change), not mode
        super().train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


@pytest.mark.parametrize("frozen", [False, True])
def test_modules_with_a_train_of_their_own_are_asked(frozen: bool) -> None:
    model = nn.Sequential(Adapter(), nn.Dropout()).train()
    model[0].train(not frozen)
    weight = 1.5 if frozen else 1.0
    assert float(model[0].weight) == weight
    with in_eval_mode(model):
        assert float(model[0].weight) == 1.5
    assert float(model[0].weight) == weight
    assert modes(model) == [True, not frozen, True]
