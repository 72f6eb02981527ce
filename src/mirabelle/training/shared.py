"""One training in which several steps act."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mirabelle.objectives import Objective
from mirabelle.run.run import Run
from mirabelle.step import ReplacesModel
from mirabelle.task.task import Task
from mirabelle.training.contracts import JoinsTraining, Prepared
from mirabelle.training.loop import default_objective, fit
from mirabelle.training.settings import Training


def with_replaced_model_as_teacher(steps: Sequence[object], model: nn.Module, task: Task) -> Task:
    """The task under which steps train a model.

    Where a step replaces the model, and asks to be taught by it or the task has no teacher, the model that is replaced teaches.
    """
    inner = [part for step in steps for part in getattr(step, "steps", (step,))]
    replacing = [step for step in inner if isinstance(step, ReplacesModel)]
    asked = any(getattr(step, "taught_by", "task") == "model" for step in replacing)
    return task.with_teacher(model) if replacing and (task.teacher is None or asked) else task


def train_together(steps: Sequence[JoinsTraining], training: Training, model: nn.Module, task: Task, run: Run) -> nn.Module:
    """The model prepared by every step, trained once with the terms and controls of all, and finished by every step."""
    task = with_replaced_model_as_teacher(steps, model, task)
    parts: list[Prepared] = []
    for step in steps:
        parts.append(step.prepare(model, task, run))
        model = parts[-1].model
    objective: Objective = training.objective or default_objective(task)
    for part in parts:
        objective = objective if part.terms is None else objective + part.terms
    controls = [control for part in parts for control in part.controls(model)]
    model = fit(model, task, training, run, objective=objective, controls=controls)
    for part in parts:
        model = part.finish(model)
    return model
