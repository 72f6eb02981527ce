"""The contract of a step, and steps to and from plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from mirabelle import records
from mirabelle.errors import UserError, at_path
from mirabelle.records.families import PACKAGES_OF_STEPS, Family

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.run.run import Run
    from mirabelle.task.task import Task

Stage = Literal["replace", "thin", "quantize"]
STAGES: tuple[Stage, ...] = ("replace", "thin", "quantize")


@dataclass(frozen=True)
class Preview:
    """What a step would do, found without training.

    Args:
        model: of the shape and sparsity that the step would give; its weights are not the final ones.
        description: what the step will do to the model at hand, in words.
        training: the `Training` that it would run, or None.
    """

    model: nn.Module
    description: tuple[str, ...]
    training: Any = None


@runtime_checkable
class Step(Protocol):
    """One change to a model: a frozen record whose fields are its hyperparameters."""

    stage: ClassVar[Stage]

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        """The changed model; the given one is left as it was."""

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        """What the call would do, in seconds and without training; raises what the call would raise at its beginning."""


@runtime_checkable
class ReplacesModel(Protocol):
    """A step whose result descends from another dense module than the one it was given."""

    def origin(self, model: nn.Module, run: Run) -> nn.Module:
        """The dense module on which the record of the result is replayed."""


def step_from_data(data: Any) -> Step:
    """A step from plain data, `{use = "family.Class", ...}`, or of a user's own `{use = "./file.py:Class", ...}`.

    Raises:
        UserError: E104 no `use`, E106 unknown step, E120 a user's step that is not found, E102, E103 or E110 wrong settings.
    """
    settings = dict(data) if isinstance(data, Mapping) else {}
    use = settings.pop("use", None)
    if not isinstance(use, str):
        raise UserError("E104", 'a step needs the key "use"', 'write use = "prune.Weights", say')
    with at_path("use"):
        cls = STEPS.member(use)
    step: Step = records.build(cls, settings, STEPS.name_of(cls))
    return step


def step_to_data(step: Step) -> dict[str, Any]:
    """The plain data from which `step_from_data` makes an equal step."""
    return {"use": STEPS.name_of(type(step), with_path=True), **records.to_data(step)}


def folder_of(position: int, step: object) -> str:
    """Where in a run's folder the step at this position, from 1, works: "steps/2-prune.weights"."""
    return f"steps/{position}-{use_of(step).rpartition(':')[2].lower()}"


def use_of(step: object) -> str:
    """The name of a step: "prune.Weights", or of a user's own "module:Class"."""
    return STEPS.name_of(type(step))


def _is_step(cls: Any) -> bool:
    return isinstance(cls, type) and hasattr(cls, "stage") and not getattr(cls, "_is_protocol", False)


STEPS = Family("step", PACKAGES_OF_STEPS, _is_step)
