"""Interfaces of training: controls that act between optimizer steps, and steps that can share one training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from mirabelle.errors import UserError
from mirabelle.run.run import differences
from mirabelle.step import Preview, Stage

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.objectives.objective import Objective
    from mirabelle.run.run import Run
    from mirabelle.task.task import Task


class Control(Protocol):
    """Changes the model between optimizer steps, for example by a growing pruning mask."""

    def __call__(self, model: nn.Module, progress: float) -> bool:
        """Change the model after an optimizer step.

        Args:
            model: the model in training, changed in place.
            progress: fraction of the training that is finished, in (0, 1].

        Returns:
            Whether the set of pruned weights has changed.
        """

    def settled(self, progress: float) -> bool:
        """Whether the model has its final form at this progress; only from then on is the best model selected."""

    def state_dict(self) -> dict[str, Any]:
        """The state as plain data for the checkpoint; the model itself is stored separately."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned; raise UserError E150 if it is of a control with other settings."""


def check_same_training(there: Any, here: Any) -> None:
    """Check that the training in a checkpoint is the one that is to go on.

    Args:
        there: settings in the checkpoint, as plain data; None if it has none.
        here: the settings of this training.

    Raises:
        UserError: E150 if they differ.
    """
    here = json.loads(json.dumps(here))
    if there is not None and there != here:
        message = f"the folder has the checkpoint of another training: {differences(there, here)}"
        raise UserError(
            "E150", message, 'give each training a part of the run, such as run.within("second"), or its own folder'
        )


def no_controls(model: nn.Module) -> Sequence[Control]:
    """No controls: the default for steps that do nothing between optimizer steps."""
    del model
    return ()


def unchanged(model: nn.Module) -> nn.Module:
    """Return the model: the default for steps that do nothing after the training."""
    return model


@dataclass(frozen=True)
class Prepared:
    """A step's contribution to a training: the model to train, terms of the loss, controls, and a final change.

    If several steps share one training, each step prepares the model from the step before it. Then the terms of all steps are
    added to the objective, the controls of all steps are created for the last model, the model is trained once, and all steps
    finish it; always in the order of the steps.

    Args:
        model: the model to train, a changed copy of the original.
        terms: terms to add to the objective; None adds nothing.
        controls: model -> controls that act on it between optimizer steps. It is called once with the model in training, which
            differs from `model` if a later step changes it.
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
    """A step that acts during training; several of them can share one training (`training.Joint`)."""

    stage: ClassVar[Stage]

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        """Describe the effect of the step, without training."""

    def prepare(self, model: nn.Module, task: Task, run: Run) -> Prepared:
        """Prepare the training: a changed copy of the model, and the changes during and after the training."""


@runtime_checkable
class NeedsTraining(Protocol):
    """A step that, depending on its settings, needs a training of its own or a shared one."""

    @property
    def needs_training(self) -> bool: ...

    @property
    def train(self) -> object | None: ...
