"""The contract test of a step."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from mirabelle.artifact import load, save
from mirabelle.model.architecture import architecture_of
from mirabelle.model.state import copied, fingerprint
from mirabelle.run.run import Run
from mirabelle.step import STAGES, STEPS, Preview, Step, step_from_data, step_to_data
from mirabelle.task.batch import call, parts_of
from mirabelle.task.task import Task


def check_step(step: Step, model: nn.Module, task: Task, *, origin: nn.Module | None = None) -> None:
    """Check that a step fulfils the contract of steps.

    It can be converted to plain data and back. It changes neither the given model nor the random generator of torch. Equal
    seeds give equal models. It leaves no hooks on the model. It has a preview. The resulting model can be saved and loaded, and
    then returns the same outputs.

    Args:
        step: the step to check, with settings that make it fast.
        model: the model on which it is called, in evaluation mode.
        task: a small task.
        origin: the dense module into which the result is loaded, if it is not `model`: for a step that replaces the model.

    Raises:
        AssertionError: with the part of the contract that is violated.

    Example:
        >>> from mirabelle import Task, quantize
        >>> x, y = torch.randn(40, 4), torch.arange(40) % 2
        >>> check_step(quantize.Dynamic(), nn.Linear(4, 2), Task(train=(x, y), test=(x, y)))
    """
    _check_data(step)
    before, attributes, state = fingerprint(model), _attributes(model), torch.get_rng_state()
    task = task if task.teacher is not None else task.with_teacher(model)
    with tempfile.TemporaryDirectory() as folder:
        runs = [Run(Path(folder) / str(position), seed=7) for position in range(3)]
        for run in runs:  # measured decisions may differ between calls, so they are fixed
            run.journal.decisions["execution"] = "float32"
        preview = step.preview(model, task, runs[2])
        assert isinstance(preview, Preview), "preview() must return a Preview"
        assert preview.description, "a preview must describe in words what the step would do"
        if preview.training is not None:
            given = parts_of(call(copied(preview.trained).train(), task.example(8).inputs))
            assert any(output.requires_grad for output in given), "the model that is trained must have a gradient"
        one, other = (step(model, task, run) for run in runs[:2])
        assert fingerprint(model) == before, "the given model must not be changed"
        assert _attributes(model) == attributes, "the attributes of the given model's modules must not be changed"
        assert torch.equal(torch.get_rng_state(), state), "torch's random generator must not be changed (use fork_rng)"
        assert fingerprint(one) == fingerprint(other), "equal seeds must give equal models"
        hooks = [hook for module in one.modules() for hook in (module._forward_hooks, module._forward_pre_hooks) if hook]
        assert not hooks, "no hooks may be left on the model"
        save(one, Path(folder) / "saved")
        again = load(origin if origin is not None else model, Path(folder) / "saved")
        assert architecture_of(again) == architecture_of(one), "the recorded edits must be the same after loading"
        example = task.example()
        with torch.no_grad():
            outputs = [parts_of(call(copied(made).eval(), example.inputs)) for made in (one, again)]
        equal = all(torch.equal(*pair) for pair in zip(*outputs, strict=True) if isinstance(pair[0], Tensor))
        assert equal, "the loaded model must return the same outputs: record every change by an Edit"


def _attributes(model: nn.Module) -> dict[str, dict[str, object]]:
    """The plain attributes of every module, by its name."""
    plain = (bool, int, float, str, tuple, type(None))
    return {
        name: {key: value for key, value in vars(module).items() if not key.startswith("_") and isinstance(value, plain)}
        for name, module in model.named_modules()
    }


def _check_data(step: Step) -> None:
    assert isinstance(step, Step), "a step has `stage`, `__call__(model, task, run)` and `preview(model, task, run)`"
    assert step.stage in STAGES, f"stage must be one of {STAGES}"
    assert dataclasses.is_dataclass(step), "the class of a step needs the decorator mirabelle.records.record"
    assert isinstance(step, STEPS.member(STEPS.name_of(type(step), with_path=True))), "the name must refer to the class"
    assert step_from_data(step_to_data(step)) == step, "a step built from its plain data must equal the original"
    try:
        step.stage = step.stage
    except AttributeError:
        return
    raise AssertionError("a step must be frozen")
