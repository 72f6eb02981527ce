"""The contract of a compression step, and the conversion of steps from and to plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from mirabelle import records
from mirabelle.errors import UserError, at_path
from mirabelle.records.families import PACKAGES_OF_STEPS, Family
from mirabelle.records.trust import NOT_TRUSTED

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.run.run import Run
    from mirabelle.task.task import Task

Stage = Literal["replace", "factorize", "thin", "quantize"]
STAGES: tuple[Stage, ...] = ("replace", "factorize", "thin", "quantize")


@dataclass(frozen=True)
class Preview:
    """The effect of a step, determined without training.

    Args:
        model: a model with the shapes and the sparsity of the step's result; its weights are not the final ones.
        description: sentences on what the step does to the given model.
        training: the `Training` that the step runs, or None.
        more_seconds: by which the step takes longer than the preview, because it measures more samples.
        in_training: the model that the training trains, if it is another one, such as one that simulates a quantized model.
        terms: terms that the step adds to the loss, or None.
    """

    model: nn.Module
    description: tuple[str, ...]
    training: Any = None
    more_seconds: float = 0.0
    in_training: nn.Module | None = None
    terms: Any = None

    @property
    def trained(self) -> nn.Module:
        """The model that the training trains."""
        return self.model if self.in_training is None else self.in_training


@runtime_checkable
class Step(Protocol):
    """A step of a recipe: a frozen record whose fields are the hyperparameters of one compression method.

    `stage` tells whether the step replaces the model, factorizes its layers, thins it (prunes units, layers or single
    weights) or quantizes it. A recipe must keep this order: a step cannot follow one of a later stage.
    """

    stage: ClassVar[Stage]

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        """Return the compressed model; the given model is not changed."""

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        """Determine the effect of the call within seconds, without training; raises the errors that the call raises first."""


@runtime_checkable
class ReplacesModel(Protocol):
    """A step whose result is derived from another dense module than the given model, such as the student of a distillation."""

    def origin(self, model: nn.Module, run: Run) -> nn.Module:
        """The dense module on which the recorded edits of the result are replayed."""


@dataclass(frozen=True)
class UnreadStep:
    """A step of a recipe in a folder that is not trusted: the code that it names was not imported, so it cannot be carried out.

    Args:
        use: name of the step.
        error: why its code was not imported.
    """

    stage: ClassVar[Stage] = "replace"

    use: str
    error: UserError

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise self.error

    def preview(self, *_: Any, **__: Any) -> Any:
        raise self.error

    def origin(self, *_: Any, **__: Any) -> Any:
        raise self.error


def step_from_data(data: Any) -> Step:
    """Create a step from plain data: `{use = "family.Class", ...}`, or `{use = "./file.py:Class", ...}` if it is user-defined.

    A step that names code, in a folder that is not trusted, becomes an `UnreadStep`.

    Raises:
        UserError: E104 if `use` is missing; E106 for an unknown step; E120 if a user-defined step is not found; E102, E103 or
            E110 for wrong settings.
    """
    settings = dict(data) if isinstance(data, Mapping) else {}
    use = settings.pop("use", None)
    if not isinstance(use, str):
        raise UserError("E104", 'a step needs the key "use"', 'add it, for example use = "prune.Weights"')
    try:
        with at_path("use"):
            cls = STEPS.member(use)
        step: Step = records.build(cls, settings, STEPS.name_of(cls))
    except UserError as error:
        if any(one.code != NOT_TRUSTED for one in error.errors):
            raise
        return UnreadStep(use, error.errors[0])
    return step


def step_to_data(step: Step) -> dict[str, Any]:
    """Convert a step to plain data, from which `step_from_data` creates an equal step."""
    return {"use": STEPS.name_of(type(step), with_path=True), **records.to_data(step)}


def folder_of(position: int, step: object) -> str:
    """The subfolder of a run for the step at this position (from 1), such as "steps/2-prune.weights"."""
    return f"steps/{position}-{use_of(step).rpartition(':')[2].lower()}"


def use_of(step: object) -> str:
    """The name of a step: "prune.Weights", or "module:Class" for a user-defined step."""
    if isinstance(step, UnreadStep):
        return step.use
    return STEPS.name_of(type(step))


def _is_step(cls: Any) -> bool:
    return isinstance(cls, type) and hasattr(cls, "stage") and not getattr(cls, "_is_protocol", False)


STEPS = Family("step", PACKAGES_OF_STEPS, _is_step)
