"""The contract of a step, and steps to and from plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from mirabelle import records
from mirabelle.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.run.run import Run
    from mirabelle.task.task import Task

Stage = Literal["replace", "thin", "quantize"]
STAGES: tuple[Stage, ...] = ("replace", "thin", "quantize")
DOORS = ("distill", "prune", "quantize", "training")


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
    """A step from plain data, `{use = "family.Class", ...}`.

    Raises:
        UserError: E104 no `use`, E106 unknown step, E102, E103 or E110 wrong settings.
    """
    settings = dict(data) if isinstance(data, Mapping) else {}
    cls = step_class(settings.pop("use", None))
    step: Step = records.build(cls, settings, f"{family_of(cls)}.{cls.__name__}")
    return step


def step_class(use: Any) -> type:
    """The class that `use` names.

    Raises:
        UserError: E104 when it is absent, E106 when it names no step.
    """
    if not isinstance(use, str):
        raise UserError("E104", 'a step needs the key "use"', 'write use = "prune.Weights", say')
    known = steps_behind_doors()
    if use not in known:
        raise UserError("E106", f'step "{use}" is not known', did_you_mean(use, known), path=("use",))
    return known[use]


def steps_behind_doors() -> dict[str, type]:
    """Every step by the name that a recipe gives it; what a door would only open when it is used is no step."""
    return {
        f"{door}.{name}": thing
        for door in DOORS
        for name, thing in vars(import_module(f"mirabelle.{door}")).items()
        if isinstance(thing, type) and hasattr(thing, "stage") and not getattr(thing, "_is_protocol", False)
    }


def step_to_data(step: Step) -> dict[str, Any]:
    """The plain data from which `step_from_data` makes an equal step."""
    return {"use": use_of(step), **records.to_data(step)}


def folder_of(position: int, step: object) -> str:
    """Where in a run's folder the step at this position, from 1, works: "steps/2-prune.weights"."""
    return f"steps/{position}-{use_of(step).lower()}"


def use_of(step: object) -> str:
    """`family.Class` of a step: the door that exports it and its name."""
    return f"{family_of(type(step))}.{type(step).__name__}"


def family_of(cls: type) -> str:
    package, _, rest = cls.__module__.partition(".")
    return rest.partition(".")[0] if package == "mirabelle" else package
