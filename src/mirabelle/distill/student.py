"""The model replaced by a smaller one that learns from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mirabelle.errors import UserError
from mirabelle.plain import record
from mirabelle.step import Control, Preview, Stage
from mirabelle.training import Training

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.objectives import Objective
    from mirabelle.run import Run
    from mirabelle.task import Task


@record
class Student:
    """A fresh, smaller model trained under the task's teacher (by default the model it replaces).

    L = α · L_KL + (1 − α) · L_CE with α = 0.9 and T = 4, unless `train.objective` says otherwise.

    Args:
        model: factory of the student, "pkg.mod:function" or "./file.py:function" (relative to the working folder).
        arguments: keywords of the factory.
        train: the training; required unless the step joins another's.

    Raises:
        UserError: E120 and E121 as the factory fails, E111 without a training.

    Example:
        >>> Student(model="mirabelle.sources.zoo:digits_mlp", train=Training(epochs=2)).stage
        'replace'

    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531.
    """

    stage: ClassVar[Stage] = "replace"

    model: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    train: Training | None = None

    @property
    def needs_training(self) -> bool:
        return True

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        from mirabelle.training import train_together

        if self.train is None:
            raise UserError("E111", "distill.Student has no training", "give `train`")
        return train_together((self,), self.train, model, task, run)

    def prepare(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        del task
        return self.origin(model, run)

    def origin(self, model: nn.Module, run: Run) -> nn.Module:
        """The student as its factory makes it, drawn with the run's seed."""
        import torch

        from mirabelle.sources import model_from

        del model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed_for("student"))
            return model_from(self.model, self.arguments, Path())

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        del task
        student = self.origin(model, run)
        size, before = (sum(parameter.numel() for parameter in module.parameters()) for module in (student, model))
        says = f"{self.model} takes the place of the model: {size:,} parameters instead of {before:,}"
        return Preview(student, (says,), self.train)

    def terms(self) -> Objective | None:
        return None

    def controls(self, model: nn.Module) -> Sequence[Control]:
        del model
        return ()

    def finish(self, model: nn.Module) -> nn.Module:
        return model
