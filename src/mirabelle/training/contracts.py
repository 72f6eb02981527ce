"""What takes part in a training: controls between optimizer steps, and steps that share one training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from mirabelle.step import Preview, Stage

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.objectives.objective import Objective
    from mirabelle.run.run import Run
    from mirabelle.task.task import Task


class Control(Protocol):
    """What changes the model between optimizer steps: a growing mask, a falling rank."""

    def __call__(self, model: nn.Module, progress: float) -> bool:
        """Act after an optimizer step; True when the set of pruned weights changed."""

    def settled(self, progress: float) -> bool:
        """Whether the model has its final shape: only from then on may a best model be chosen."""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers from which `load_state_dict` goes on; the checkpoint keeps the model itself."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""


def no_controls(model: nn.Module) -> Sequence[Control]:
    """The controls of a step that does nothing between optimizer steps."""
    del model
    return ()


def unchanged(model: nn.Module) -> nn.Module:
    """The model itself: how a step finishes that has nothing left to do after the training."""
    return model


@dataclass(frozen=True)
class Prepared:
    """What a step brings into a training: a model to train, and what it does before, during and after the optimizer steps.

    Where several steps share one training, each prepares the model that the step before it has prepared. Then the terms of
    all are added to the objective, the controls of all are made for the model that the last one has prepared, the model is
    trained once, and all finish it, always in the order of the steps.

    Args:
        model: the model to train: a changed copy of the given one.
        terms: what the step adds to the objective of the training; None adds nothing.
        controls: model -> the controls that act on it between optimizer steps. It is called once, with the model that is
            trained, which is another one than `model` where a later step changes it again.
        finish: trained model -> final model.

    Example:
        >>> from torch import nn
        >>> prepared = Prepared(nn.Linear(2, 1))
        >>> prepared.terms, prepared.controls(prepared.model), prepared.finish(prepared.model) is prepared.model
        (None, (), True)
    """

    model: nn.Module
    terms: Objective | None = None
    controls: Callable[[nn.Module], Sequence[Control]] = no_controls
    finish: Callable[[nn.Module], nn.Module] = unchanged


@runtime_checkable
class JoinsTraining(Protocol):
    """A step that acts while a model trains; several may share one training (`training.Joint`)."""

    stage: ClassVar[Stage]

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        """What joining the training would do, without training."""

    def prepare(self, model: nn.Module, task: Task, run: Run) -> Prepared:
        """The model to train, a changed copy of the given one, and what the step does while it trains and afterwards."""


@runtime_checkable
class NeedsTraining(Protocol):
    """A step that may be unable to do its work without a training of its own or a shared one."""

    @property
    def needs_training(self) -> bool: ...

    @property
    def train(self) -> object | None: ...
