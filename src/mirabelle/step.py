"""The contract of a step, and of a step that acts while a model trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import nn

from mirabelle import plain
from mirabelle.errors import UserError
from mirabelle.run import Run
from mirabelle.task import Task

if TYPE_CHECKING:
    from mirabelle.objectives.objective import Objective

Stage = Literal["replace", "thin", "quantize"]
STAGES: tuple[Stage, ...] = ("replace", "thin", "quantize")
_DOORS = ("distill", "prune", "quantize", "training")


@runtime_checkable
class Step(Protocol):
    """One change to a model: a frozen record whose fields are its hyperparameters."""

    stage: ClassVar[Stage]

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        """The changed model; the given one is left as it was."""


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

    def prepare(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        """The model that trains: a changed copy."""

    def terms(self) -> Objective | None:
        """What the step adds to the objective."""

    def controls(self, model: nn.Module) -> Sequence[Control]:
        """What the step does between optimizer steps of the prepared model."""

    def finish(self, model: nn.Module) -> nn.Module:
        """The trained model made final."""


@runtime_checkable
class ReplacesModel(Protocol):
    """A step whose result descends from another dense module than the one it was given."""

    def origin(self, model: nn.Module, run: Run) -> nn.Module:
        """The dense module on which the record of the result is replayed."""


@runtime_checkable
class NeedsTraining(Protocol):
    """A step that may be unable to do its work without a training of its own or a shared one."""

    @property
    def needs_training(self) -> bool: ...

    @property
    def train(self) -> object | None: ...


def step_from_data(data: Any) -> Step:
    """A step from plain data, `{use = "family.Class", ...}`.

    Raises:
        UserError: E104 no `use`, E106 unknown step, E102, E103 or E110 wrong settings.
    """
    settings = dict(data)
    use = settings.pop("use", None)
    if not isinstance(use, str):
        raise UserError("E104", 'a step needs the key "use"', 'write use = "prune.Weights", say')
    door, _, name = use.partition(".")
    if door not in _DOORS or not name:
        raise UserError("E106", f'step "{use}" is not known', f"steps live in {', '.join(_DOORS)}: prune.Weights, say")
    cls = plain.lookup(door, name)
    if not isinstance(cls, type) or not hasattr(cls, "stage"):
        raise UserError("E106", f'"{use}" is not a step', "see the documentation of recipes")
    step: Step = plain.build(cls, settings, use)
    return step


def step_to_data(step: Step) -> dict[str, Any]:
    """The plain data from which `step_from_data` makes an equal step."""
    return {"use": use_of(step), **plain.to_data(step)}


def use_of(step: object) -> str:
    """`family.Class` of a step: the door that exports it and its name."""
    package, _, rest = type(step).__module__.partition(".")
    family = rest.partition(".")[0] if package == "mirabelle" else package
    return f"{family}.{type(step).__name__}"
