"""Several steps that share one training."""

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
    """Steps that share one training, in the order in which they prepare the model."""

    __slots__ = ()

    @staticmethod
    def from_data(data: Any) -> Parts:
        if isinstance(data, Parts):
            return data
        if not isinstance(data, (list, tuple)):
            raise UserError(
                "E103", f"the steps of a joint training must be a list of tables; got {data!r}", "write [[step.steps]]"
            )
        mistakes: list[UserError] = []
        steps: list[JoinsTraining] = []
        for position, part in enumerate(data):
            with gathered(mistakes, position):
                step = step_from_data(part) if isinstance(part, Mapping) else part
                if not isinstance(step, JoinsTraining):
                    raise UserError(
                        "E111", f"{use_of(step)} does not act during training", "make it a separate step", path=("use",)
                    )
                steps.append(step)
        raise_all(mistakes)
        return Parts(steps)

    def to_data(self) -> list[dict[str, Any]]:
        return [step_to_data(step) for step in self]  # type: ignore[arg-type]


@record
class Joint:
    """One training shared by several steps, for example to prune convolutions and linear layers in different ways.

    Args:
        steps: the steps; they must not have a `train` of their own.
        train: settings of the shared training.

    Raises:
        UserError: E111 if a step has its own training or does not act during training, E105 if the steps are in a wrong order.

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
                raise UserError("E111", f"{type(step).__name__} has its own training", "remove its `train`")
        legal = sorted(self.steps, key=lambda step: STAGES.index(step.stage))
        if legal != [*self.steps]:
            names = [use_of(step) for step in self.steps]
            remedy = f"legal order: {', '.join(map(use_of, legal))}"
            raise UserError("E105", f"the steps of a joint training are in a wrong order: {', '.join(names)}", remedy)

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
        terms, given, rounding = None, model, 0
        for position, step in enumerate(self.steps):
            with at_path("steps", position):
                part = step.preview(model, task, run)
            model, description, rounding = part.model, description + part.description, rounding + (part.in_training is not None)
            terms = part.terms if terms is None else terms if part.terms is None else terms + part.terms
        in_training = part.in_training if rounding <= 1 else self._in_training(given, task, run)
        return Preview(model, description, self.train, in_training=in_training, terms=terms)

    def _in_training(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        """The model that the training trains, if several parts train another one than they give."""
        for step in self.steps:
            model = step.prepare(model, task, run).model
        return model

    def origin(self, model: nn.Module, run: Run) -> nn.Module:
        for step in self.steps:
            model = step.origin(model, run) if isinstance(step, ReplacesModel) else model
        return model
