"""The training that several steps share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from mirabelle.model.output_scale import with_output_scale
from mirabelle.objectives import Objective
from mirabelle.run.run import Run
from mirabelle.step import Preview, ReplacesModel
from mirabelle.task.loss import Standardized
from mirabelle.task.task import Task
from mirabelle.training.contracts import JoinsTraining, Prepared
from mirabelle.training.evaluation import outputs_of
from mirabelle.training.loop import fit
from mirabelle.training.objective_by_default import default_objective
from mirabelle.training.settings import Training


def with_scale_of_targets(model: nn.Module, task: Task) -> nn.Module:
    """Prepare a model for its first training, in place: with the loss `Standardized`, its outputs get the targets' scale.

    A model that is better than the mean of the targets as it is has their scale already, and is returned unchanged.

    Args:
        model: with its first weights.
        task: whose loss says the scale.
    """
    if not isinstance(task.loss, Standardized) or float(task.loss(*outputs_of(model, task.validation))) < 1:
        return model
    return with_output_scale(model, task.loss.mean, task.loss.deviation)


def with_replaced_model_as_teacher(steps: Sequence[object], model: nn.Module, task: Task) -> Task:
    """The task of a training, with the model as teacher if a step replaces the model by a student.

    The model becomes the teacher if the task has none, or the step has `taught_by = "model"`; otherwise the task is unchanged.

    Args:
        steps: the steps, or joint trainings of steps.
        model: the model before the training.
        task: the task.
    """
    inner = [part for step in steps for part in getattr(step, "steps", (step,))]
    replacing = [step for step in inner if isinstance(step, ReplacesModel)]
    asked = any(getattr(step, "taught_by", "task") == "model" for step in replacing)
    return task.with_teacher(model) if replacing and (task.teacher is None or asked) else task


def train_together(steps: Sequence[JoinsTraining], training: Training, model: nn.Module, task: Task, run: Run) -> nn.Module:
    """Prepare a model by every step, train it once with the terms and controls of all steps, and finish it by every step."""
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


def training_of(preview: Preview, task: Task) -> Training | None:
    """The training of a previewed step with all terms of its loss."""
    training: Training | None = preview.training
    if training is None or preview.terms is None:
        return training
    return replace(training, objective=(training.objective or default_objective(task)) + preview.terms)
