"""What takes part in a training: controls between optimizer steps, and steps that share one training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.objectives.objective import Objective
    from mirabelle.run.run import Run
    from mirabelle.task.task import Task
from mirabelle.step import Preview, Stage


class Control(Protocol):
    """What changes the model between optimizer steps: a growing mask, a falling rank."""

    def __call__(self, model: nn.Module, progress: float) -> bool:
        """Act after an optimizer step; True when the set of pruned weights changed."""

    def settled(self, progress: float) -> bool:
        """Whether the model has its final shape: only from then on may a best model be chosen."""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers from which `load_state_dict` goes on; the model is restored beside it."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was written."""


@runtime_checkable
class JoinsTraining(Protocol):
    """A step that acts while a model trains; several may share one training (`training.Joint`)."""

    stage: ClassVar[Stage]

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        """What joining the training would do, without training."""

    def prepare(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        """The model that trains: a changed copy."""

    def terms(self) -> Objective | None:
        """What the step adds to the objective."""

    def controls(self, model: nn.Module) -> Sequence[Control]:
        """What the step does between optimizer steps of the prepared model."""

    def finish(self, model: nn.Module) -> nn.Module:
        """The trained model made final."""


@runtime_checkable
class NeedsTraining(Protocol):
    """A step that may be unable to do its work without a training of its own or a shared one."""

    @property
    def needs_training(self) -> bool: ...

    @property
    def train(self) -> object | None: ...
