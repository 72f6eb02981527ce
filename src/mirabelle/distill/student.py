"""The distillation step: replace a model by a smaller student that is trained with a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from mirabelle.errors import UserError
from mirabelle.records.record import record
from mirabelle.step import Preview, Stage
from mirabelle.training import Training
from mirabelle.training.contracts import Prepared

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.run.run import Run
    from mirabelle.task.task import Task


Kept = Annotated[float, Field(gt=0, le=1)]


@record
class Student:
    """Replace the model by a smaller student, trained with the task's teacher (by default the model that is replaced).

    The loss is L = α · L_KL + (1 − α) · L_CE with α = 0.9 and temperature 4, unless `train.objective` is given. The student is
    made by a factory (`model`), or derived from the model that it replaces: it keeps a share `width` of the units of every
    group (like `prune.Channels`) and a share `depth` of the residual layers (like `prune.Layers`). `width = 1.0` with a random
    start gives a student of the same size (a born-again network).

    Args:
        model: factory of the student, "pkg.mod:function" or "./file.py:function" (relative to the working folder).
        arguments: keyword arguments of the factory.
        width: share of the units that a derived student keeps in every group of channels, neurons and heads, in (0, 1].
        depth: share of the residual layers that a derived student keeps, in (0, 1].
        start: initial weights of a derived student: "teacher" keeps those of the replaced model, "random" draws new ones.
        head: "own" keeps the student's last linear layer; "teacher" replaces it by a trained projector and the teacher's last
            linear layer (frozen), as the term `SimKD` needs.
        taught_by: "task" uses the task's teacher; "model" uses the model that this student replaces. After another student,
            "model" makes that student a teacher assistant.
        train: the training; required unless the step is part of a joint training.

    Raises:
        UserError: E120 or E121 if the factory fails, E111 without a training, if both or neither of a factory and a derived
            student are given, or if the weights cannot be initialized again; a derived student also raises the errors of
            `prune.Channels` and `prune.Layers`.

    Example:
        >>> Student(model="mirabelle.sources.zoo:digits_mlp", train=Training(epochs=2)).stage
        'replace'
        >>> Student(width=0.25, depth=0.5, start="teacher").derived
        True

    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531; born again: Furlanello, Lipton, Tschannen, Itti, Anandkumar 2018,
    arXiv:1805.04770; assistants: Mirzadeh et al. 2020, arXiv:1902.03393.
    """

    stage: ClassVar[Stage] = "replace"

    model: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    width: Kept | None = None
    depth: Kept | None = None
    start: Literal["teacher", "random"] = "random"
    head: Literal["own", "teacher"] = "own"
    taught_by: Literal["task", "model"] = "task"
    train: Training | None = None

    def __post_init__(self) -> None:
        if (self.model is not None) == self.derived:
            message = "a student needs either `model`, or `width` and `depth`"
            raise UserError("E111", message, 'write model = "pkg.mod:function", or width = 0.5')
        if self.start == "teacher" and not self.derived:
            message = 'start = "teacher" needs a student that is derived by `width` or `depth`'
            raise UserError("E111", message, "leave out start", path=("start",))

    @property
    def derived(self) -> bool:
        """Whether the student is derived from the model that it replaces."""
        return self.width is not None or self.depth is not None

    @property
    def needs_training(self) -> bool:
        return True

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        from mirabelle.training import train_together

        if self.train is None:
            raise UserError("E111", "distill.Student has no training", "give `train`")
        return train_together((self,), self.train, model, task, run)

    def prepare(self, model: nn.Module, task: Task, run: Run) -> Prepared:
        return Prepared(self._student(model, task, run))

    def _student(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        """The student with its first weights, and with the teacher's head where that is asked for."""
        from mirabelle.numerics.draws import global_draws
        from mirabelle.training import with_scale_of_targets

        student = self._cut_out(model, task, run) if self.derived else with_scale_of_targets(self.origin(model, run), task)
        if self.head == "own":
            return student
        from mirabelle.distill.head import with_head_of

        teacher = model if task.teacher is None or self.taught_by == "model" else task.teacher
        with global_draws(run.seed_for("head")):
            return with_head_of(student, teacher, task.example())

    def origin(self, model: nn.Module, run: Run) -> nn.Module:
        """The dense model of the student: made by the factory with the run's seed, or the model that it is derived from."""
        from mirabelle.sources import model_from

        if self.model is None:
            return model
        return model_from(self.model, self.arguments, Path(), run.seed_for("student"))

    def _cut_out(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        from mirabelle.distill.reinitialized import redrawn
        from mirabelle.model.state import copied
        from mirabelle.prune import Channels, Layers

        student = copied(model)
        if self.depth is not None and self.depth < 1:
            student = Layers(sparsity=1 - self.depth)(student, task, run.within("depth"))
        if self.width is not None and self.width < 1:
            student = Channels(sparsity=1 - self.width)(student, task, run.within("width"))
        return redrawn(student, run.seed_for("student")) if self.start == "random" else student

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        student = self._student(model, task, run)
        size, before = (sum(parameter.numel() for parameter in module.parameters()) for module in (student, model))
        description = (
            f"the model is replaced by {self.model or 'a student derived from it'}: {size:,} parameters instead of {before:,}"
        )
        return Preview(student, (description,), self.train)
