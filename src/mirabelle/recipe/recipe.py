"""A recipe: a list of steps in a valid order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mirabelle.errors import UserError, gathered, raise_all
from mirabelle.step import STAGES, STEPS, Stage, Step, UnreadStep, step_from_data, step_to_data, use_of
from mirabelle.training.contracts import NeedsTraining
from mirabelle.training.joint import Joint


class Recipe:
    """A list of steps in a valid order.

    Steps that replace the model come first, then those that prune it, then those that quantize it: a step of an earlier stage
    would undo the work of a later one.

    Args:
        steps: at least one step.

    Raises:
        UserError: E105 if the order is not valid; E104 if there is no step; E111 if a step that needs a training has none.

    Example:
        >>> from mirabelle import prune, quantize
        >>> Recipe([quantize.Static(), prune.Weights(sparsity=0.9)])
        Traceback (most recent call last):
        ...
        mirabelle.errors.UserError: error[E105]: prune.Weights (step 2) cannot follow quantize.Static (step 1)
        help: legal order: prune.Weights, quantize.Static
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)
        if not self.steps:
            raise UserError("E104", "a recipe needs at least one step", "add a [[step]]")
        mistakes = list(_out_of_order([None if isinstance(step, UnreadStep) else _Stages.of(step) for step in self.steps]))
        for position, step in enumerate(self.steps):
            if isinstance(step, NeedsTraining) and step.needs_training and step.train is None:
                remedy = "give `train`, or put the step into training.Joint"
                mistakes.append(UserError("E111", f"{use_of(step)} needs a training", remedy, path=(position,)))
        raise_all(mistakes)

    @staticmethod
    def from_data(data: Any) -> Recipe:
        """Create a recipe from a list of tables, each with the key `use`.

        Raises:
            UserError: E103 if it is not a list, and the errors of all tables together, each with the position in its path.
        """
        if not isinstance(data, list):
            raise UserError("E103", f'"step" must be a list of tables; got {data!r}', "write [[step]], with two brackets")
        mistakes: list[UserError] = []
        steps: list[Step] = []
        for position, table in enumerate(data):
            with gathered(mistakes, position):
                steps.append(step_from_data(table))
        if mistakes:  # report a wrong order at the same time, as far as the steps are known
            mistakes += _out_of_order([_Stages.named(table) for table in data])
        raise_all(mistakes)
        return Recipe(steps)

    def to_data(self) -> list[dict[str, Any]]:
        """The steps as plain data: a list of tables."""
        return [step_to_data(step) for step in self.steps]


@dataclass(frozen=True)
class _Stages:
    """The name of a step, and its first and last stage."""

    use: str
    begins: Stage
    ends: Stage

    @staticmethod
    def of(step: Step) -> _Stages:
        return _Stages(use_of(step), step.first_stage if isinstance(step, Joint) else step.stage, step.stage)

    @staticmethod
    def named(table: Any) -> _Stages | None:
        """The stages of a built-in step by its name in a table; None for other steps and joint trainings."""
        use = table.get("use") if isinstance(table, Mapping) else None
        cls: Any = STEPS.known().get(use) if isinstance(use, str) else None
        return None if cls is None or cls is Joint else _Stages(str(use), cls.stage, cls.stage)


def _out_of_order(steps: Sequence[_Stages | None]) -> Iterator[UserError]:
    """An E105 error for each step that follows a step of a later stage."""
    for position, (before, after) in enumerate(pairwise(steps), start=1):
        if before is None or after is None or STAGES.index(after.begins) >= STAGES.index(before.ends):
            continue
        legal = sorted((step for step in steps if step is not None), key=lambda step: STAGES.index(step.ends))
        yield UserError(
            "E105",
            f"{after.use} (step {position + 1}) cannot follow {before.use} (step {position})",
            f"legal order: {', '.join(step.use for step in legal)}",
            path=(position, "use"),
        )
