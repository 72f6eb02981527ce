"""What a process has set, and the models that a caller gives, are as before after every public call, also one that fails."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mirabelle
from mirabelle import Run, Source, Task, Training, compare, compress, distill, prune, quantize, training
from mirabelle.distill import Guided
from mirabelle.errors import UserError
from mirabelle.inspection import sensitivity_of, structure_of
from mirabelle.inspection.measure import exported, measure
from mirabelle.job.dry_run import JobPlan
from mirabelle.job.forecast import forecast
from mirabelle.job.verification import verify_file
from mirabelle.objectives import Hint, SoftTargets, TaskLoss
from mirabelle.recipe import Recipe
from mirabelle.runtime.export import export
from mirabelle.scores import Fisher, Taylor
from mirabelle.scores.evidence import evidence_for
from mirabelle.task.goal import Goal

TRAIN = Training(epochs=1, batch_size=50)
SET_ONCE = ("TORCHINDUCTOR_CACHE_DIR", "ORT_DISABLE_TELEMETRY")  # by torch, and by us before ONNX Runtime is imported
LOGGERS = ["", "torch", "torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir", "transformers"]


def net() -> nn.Sequential:
    """With a frozen layer, a frozen norm, and dropout that is on in eval mode."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 3)).eval()
    model[3].train()
    model[0].requires_grad_(requires_grad=False)
    model[4].bias.grad = torch.ones(3)
    return model


def state_of_process() -> dict[str, Any]:
    numpy_state = np.random.get_state()  # noqa: NPY002 (the one that others use)
    return {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "dtype and device": (torch.get_default_dtype(), torch.get_default_device()),
        "random": (torch.get_rng_state().tolist(), random.getstate(), numpy_state[1].tolist(), numpy_state[2]),
        "backends": (
            torch.backends.mha.get_fastpath_enabled(),
            torch.backends.mkldnn.enabled,
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
        ),
        "warnings": list(warnings.filters),
        "loggers": {name: logging.getLogger(name).level for name in LOGGERS} | {"off": logging.root.manager.disable},
        "handlers": {name: list(logging.getLogger(name).handlers) for name in LOGGERS},
        "folder": os.getcwd(),  # noqa: PTH109
        "environment": {name: value for name, value in os.environ.items() if name not in SET_ONCE},
        "printing": torch._tensor_str.PRINT_OPTS,
        "saved tensors": torch._C._autograd._top_saved_tensors_default_hooks(True),
    }


def state_of_model(model: nn.Module) -> dict[str, Any]:
    modules = dict(model.named_modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")
    return {
        "modes": {name: module.training for name, module in modules.items()},
        "hooks": {name: [len(getattr(module, kind)) for kind in hooks] for name, module in modules.items()},
        "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
        "gradients": {
            name: (one.requires_grad, None if one.grad is None else one.grad.tolist()) for name, one in model.named_parameters()
        },
        "tensors": {name: (tensor.dtype, tensor.stride(), tensor.tolist()) for name, tensor in model.state_dict().items()},
    }


def guided(model: nn.Module, task: Task, teacher: nn.Module) -> None:
    batch = task.train.first(10)
    with Guided(model, teacher, 0.5 * SoftTargets() + 0.5 * TaskLoss(), (batch.inputs, batch.targets)) as loss:
        with torch.random.fork_rng():  # the caller's own call of its model draws dropout
            outputs = model(batch.inputs)
        loss(outputs, batch.targets)


def plan(model: nn.Module, task: Task) -> JobPlan:
    steps = [prune.Weights(sparsity=0.5, train=TRAIN), quantize.Static(samples=20)]
    return JobPlan(model=model, task=task, recipe=Recipe(steps), goal=Goal())


CALLS: dict[str, Callable[[nn.Module, nn.Module, Task, Path], Any]] = {
    "compress": lambda model, teacher, task, out: compress(
        model, task, plan(model, task).recipe, out=out, baseline=TRAIN, teacher=teacher, source=Source(decisions={"threads": 1})
    ),
    "compress without labels": lambda model, teacher, task, out: compress(
        model, Task(train=task.train.inputs, test=task.test.inputs), [quantize.Dynamic()], out=out
    ),
    "compress by channels and layers": lambda model, teacher, task, out: compress(
        model, task, [prune.Channels(sparsity=0.5, score=Taylor(samples=20)), quantize.Weights()], out=out
    ),
    "a student": lambda model, teacher, task, out: compress(
        model,
        task,
        [distill.Student(width=0.5, train=Training(epochs=1, objective=0.5 * Hint() + 0.5 * SoftTargets()))],
        out=out,
    ),
    "compare": lambda model, teacher, task, out: compare(
        model, task, {"int8": [quantize.Static(samples=20)]}, out=out, seeds=(0,)
    ),
    "check": lambda model, teacher, task, out: forecast(plan(model, task)),
    "evaluate": lambda model, teacher, task, out: training.evaluate(model, task.test, task),
    "outputs_of": lambda model, teacher, task, out: training.outputs_of(model, task.test),
    "measure": lambda model, teacher, task, out: measure(model, task, task.test, exported(model, task)),
    "export": lambda model, teacher, task, out: export(model, task.example(), task.labels),
    "structure_of": lambda model, teacher, task, out: structure_of(model, task.example()),
    "sensitivity_of": lambda model, teacher, task, out: sensitivity_of(model, task, samples=20, sparsities=(0.5,)),
    "evidence_for": lambda model, teacher, task, out: evidence_for(Fisher(samples=10), model, task),
    "a step": lambda model, teacher, task, out: prune.Weights(sparsity=0.5, train=TRAIN)(model, task, Run(out)),
    "guided": lambda model, teacher, task, out: guided(model, task, teacher),
    "relabelled": lambda model, teacher, task, out: distill.relabelled(task, lambda inputs: inputs.argmax(1) % 3),
    "save": lambda model, teacher, task, out: mirabelle.save(model, out),
    "pack, unpack and verify": lambda model, teacher, task, out: (
        (out / "one.mira").write_bytes(mirabelle.pack(onnx := export(model, task.example(), task.labels))),
        mirabelle.unpack((out / "one.mira").read_bytes()) == onnx,
        verify_file(out / "one.mira", task),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _imports() -> None:
    """Packages that register warnings and set variables of the environment when they are imported."""
    x, y = torch.randn(20, 8), torch.arange(20) % 3
    task = Task(train=(x, y), test=(x, y))
    measure(net(), task, task.test, exported(net(), task))


@pytest.fixture
def unusual() -> Any:
    """Settings of a process that are not those of a new one."""
    with contextlib.ExitStack() as stack:
        threads = torch.get_num_threads()
        stack.callback(torch.set_num_threads, threads)
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        stack.enter_context(warnings.catch_warnings())
        torch.set_num_threads(3)
        torch.backends.mha.set_fastpath_enabled(False)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        yield
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.usefixtures("unusual")
def test_a_call_leaves_the_process_and_the_models_as_they_were(name: str, blobs: Task, tmp_path: Path) -> None:
    model, teacher = net(), net()
    torch.manual_seed(7)
    process, models = state_of_process(), [state_of_model(one) for one in (model, teacher)]
    CALLS[name](model, teacher, blobs, tmp_path)
    after = state_of_process()
    assert {key: value for key, value in after.items() if value != process[key]} == {}
    for before, one in zip(models, (model, teacher), strict=True):
        found = state_of_model(one)
        assert {key: value for key, value in found.items() if value != before[key]} == {}


class Failing(nn.Linear):
    """Fails where it is computed with gradients, in the middle of a training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and torch.is_grad_enabled():
            raise KeyboardInterrupt
        return super().forward(x)


@pytest.mark.parametrize("name", ["compress", "a step", "a student", "check"])
@pytest.mark.usefixtures("unusual")
def test_a_call_that_fails_leaves_them_as_they_were(name: str, blobs: Task, tmp_path: Path) -> None:
    model, teacher = net(), net()
    model[4] = Failing(12, 3)
    torch.manual_seed(7)
    process, before = state_of_process(), state_of_model(model)
    with pytest.raises((KeyboardInterrupt, UserError)):
        CALLS[name](model, teacher, blobs, tmp_path)
    assert {key: value for key, value in state_of_process().items() if value != process[key]} == {}
    assert {key: value for key, value in state_of_model(model).items() if value != before[key]} == {}
