"""Several techniques in one training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import PlainValidator

from mirabelle.errors import UserError, at_path, gathered, raise_all
from mirabelle.records.record import record
from mirabelle.step import STAGES, Preview, ReplacesModel, Stage, step_from_data, step_to_data, use_of
from mirabelle.training.contracts import JoinsTraining
from mirabelle.training.settings import Training

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.run.run import Run
    from mirabelle.task.task import Task


class Parts(tuple[JoinsTraining, ...]):
    """Steps that train together, in the order in which they prepare the model."""

    __slots__ = ()

    @staticmethod
    def from_data(data: Any) -> Parts:
        if isinstance(data, Parts):
            return data
        if not isinstance(data, (list, tuple)):
            raise UserError("E103", f"steps that train together must be a list of tables; got {data!r}", "write [[step.steps]]")
        mistakes: list[UserError] = []
        steps: list[JoinsTraining] = []
        for position, part in enumerate(data):
            with gathered(mistakes, position):
                step = step_from_data(part) if isinstance(part, Mapping) else part
                if not isinstance(step, JoinsTraining):
                    raise UserError(
                        "E111", f"{use_of(step)} does not act during training", "make it a step of its own", path=("use",)
                    )
                steps.append(step)
        raise_all(mistakes)
        return Parts(steps)

    def to_data(self) -> list[dict[str, Any]]:
        return [step_to_data(step) for step in self]  # type: ignore[arg-type]


@record
class Joint:
    """One training in which several steps act: prune convolutions and dense layers each in its own way, say.

    Args:
        steps: the steps; their own `train` must be absent.
        train: settings of the shared training.

    Raises:
        UserError: E111 when a step brings a training of its own, or cannot join one.

    Example:
        >>> from mirabelle import prune
        >>> from mirabelle.training import Training
        >>> joint = Joint(
        ...     steps=(prune.Weights(sparsity=0.5, include=("conv*",)), prune.Weights(sparsity=0.9, include=("fc*",))),
        ...     train=Training(epochs=2),
        ... )
        >>> joint.stage
        'thin'
    """

    steps: Annotated[Sequence[JoinsTraining], PlainValidator(Parts.from_data)]
    train: Training

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", Parts.from_data(self.steps))
        if not self.steps:
            raise UserError("E111", "a joint training needs at least one step", "name one under `steps`")
        for step in self.steps:
            if getattr(step, "train", None) is not None:
                raise UserError("E111", f"{type(step).__name__} has a training of its own", "leave its `train` out")
        stages = [STAGES.index(step.stage) for step in self.steps]
        if stages != sorted(stages):
            raise UserError("E105", "a joint training replaces the model first and thins it then", "put distill.Student first")

    @property
    def stage(self) -> Stage:
        """The latest stage of its parts."""
        return self.steps[-1].stage

    @property
    def first_stage(self) -> Stage:
        """The earliest stage of its parts."""
        return self.steps[0].stage

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        from mirabelle.training.shared import train_together

        return train_together(self.steps, self.train, model, task, run)

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        description: tuple[str, ...] = ()
        for position, step in enumerate(self.steps):
            with at_path("steps", position):
                part = step.preview(model, task, run)
            model, description = part.model, description + part.description
        return Preview(model, description, self.train)

    def origin(self, model: nn.Module, run: Run) -> nn.Module:
        for step in self.steps:
            model = step.origin(model, run) if isinstance(step, ReplacesModel) else model
        return model
