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
    """Check that a step does what Mirabelle asks of every step.

    It is plain data and comes back from it equal; it leaves the given model and the random generator of torch alone; with the
    same seed it gives the same model; it leaves no hooks; its preview needs no training; and what it makes is loaded from a
    folder again with the same outputs.

    Args:
        step: with settings that make it quick.
        model: that it is called on, in eval mode.
        task: small.
        origin: the dense module on which the result is replayed, if that is not `model`: of a step that puts another model in
            its place.

    Raises:
        AssertionError: with the part of the contract that does not hold.

    Example:
        >>> from mirabelle import Task, quantize
        >>> x, y = torch.randn(40, 4), torch.arange(40) % 2
        >>> check_step(quantize.Dynamic(), nn.Linear(4, 2), Task(train=(x, y), test=(x, y)))
    """
    _check_data(step)
    before, state = fingerprint(model), torch.get_rng_state()
    task = task if task.teacher is not None else task.with_teacher(model)
    with tempfile.TemporaryDirectory() as folder:
        runs = [Run(Path(folder) / str(position), seed=7) for position in range(3)]
        for run in runs:  # what is measured may differ from call to call, so it is decided here
            run.journal.decisions["execution"] = "float32"
        preview = step.preview(model, task, runs[2])
        assert isinstance(preview, Preview), "preview() must return a Preview"
        assert preview.description, "a preview must say in words what the step would do"
        one, other = (step(model, task, run) for run in runs[:2])
        assert fingerprint(model) == before, "the given model must be left as it was"
        assert torch.equal(torch.get_rng_state(), state), "torch's random generator must be left as it was (fork_rng)"
        assert fingerprint(one) == fingerprint(other), "the same seed must give the same model"
        hooks = [hook for module in one.modules() for hook in (module._forward_hooks, module._forward_pre_hooks) if hook]
        assert not hooks, "no hooks may be left on the model"
        save(one, Path(folder) / "saved")
        again = load(origin if origin is not None else model, Path(folder) / "saved")
        assert architecture_of(again) == architecture_of(one), "the record of the edits must come back as it was"
        example = task.example()
        with torch.no_grad():
            outputs = [parts_of(call(copied(made).eval(), example.inputs)) for made in (one, again)]
        equal = all(torch.equal(*pair) for pair in zip(*outputs, strict=True) if isinstance(pair[0], Tensor))
        assert equal, "the model that is loaded again must give the same outputs: record every change with an Edit"


def _check_data(step: Step) -> None:
    assert isinstance(step, Step), "a step has `stage`, `__call__(model, task, run)` and `preview(model, task, run)`"
    assert step.stage in STAGES, f"stage must be one of {STAGES}"
    assert dataclasses.is_dataclass(step), "a step is made with the decorator mirabelle.records.record"
    assert isinstance(step, STEPS.member(STEPS.name_of(type(step), with_path=True))), "its name must lead to its class"
    assert step_from_data(step_to_data(step)) == step, "a step must come back equal from its plain data"
    try:
        step.stage = step.stage
    except AttributeError:
        return
    raise AssertionError("a step must be frozen")
