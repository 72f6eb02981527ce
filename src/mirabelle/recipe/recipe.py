"""A list of steps, its order checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mirabelle.errors import UserError, gathered, raise_all
from mirabelle.step import STAGES, STEPS, Stage, Step, step_from_data, step_to_data, use_of
from mirabelle.training.contracts import NeedsTraining
from mirabelle.training.joint import Joint


class Recipe:
    """Steps in a legal order.

    A model is replaced first, thinned next, quantized last: what a later stage made, an earlier one would undo.

    Args:
        steps: at least one.

    Raises:
        UserError: E105 when the order is not legal, E104 when there is no step.

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
        mistakes = list(_out_of_order([_Place.of(step) for step in self.steps]))
        for position, step in enumerate(self.steps):
            if isinstance(step, NeedsTraining) and step.needs_training and step.train is None:
                remedy = "give `train`, or put the step into training.Joint"
                mistakes.append(UserError("E111", f"{use_of(step)} needs a training", remedy, path=(position,)))
        raise_all(mistakes)

    @staticmethod
    def from_data(data: Any) -> Recipe:
        """From a list of tables, each with `use`; every mistake in them is found, the path of each led by its position."""
        if not isinstance(data, list):
            raise UserError("E103", f'"step" must be a list of tables; got {data!r}', "write [[step]], with two brackets")
        mistakes: list[UserError] = []
        steps: list[Step] = []
        for position, table in enumerate(data):
            with gathered(mistakes, position):
                steps.append(step_from_data(table))
        if mistakes:  # the order is told of in the same breath, as far as the steps are known
            mistakes += _out_of_order([_Place.named(table) for table in data])
        raise_all(mistakes)
        return Recipe(steps)

    def to_data(self) -> list[dict[str, Any]]:
        return [step_to_data(step) for step in self.steps]


@dataclass(frozen=True)
class _Place:
    """What the order of steps depends on: a step's name, and the stages at which it begins and ends."""

    use: str
    begins: Stage
    ends: Stage

    @staticmethod
    def of(step: Step) -> _Place:
        return _Place(use_of(step), step.first_stage if isinstance(step, Joint) else step.stage, step.stage)

    @staticmethod
    def named(table: Any) -> _Place | None:
        """Of a table whose step is known by its name alone; None for others."""
        use = table.get("use") if isinstance(table, Mapping) else None
        cls: Any = STEPS.known().get(use) if isinstance(use, str) else None
        return None if cls is None or cls is Joint else _Place(str(use), cls.stage, cls.stage)


def _out_of_order(places: Sequence[_Place | None]) -> Iterator[UserError]:
    """A mistake for every step that would undo what the step before it made."""
    for position, (before, after) in enumerate(pairwise(places), start=1):
        if before is None or after is None or STAGES.index(after.begins) >= STAGES.index(before.ends):
            continue
        legal = sorted((place for place in places if place is not None), key=lambda place: STAGES.index(place.ends))
        yield UserError(
            "E105",
            f"{after.use} (step {position + 1}) cannot follow {before.use} (step {position})",
            f"legal order: {', '.join(place.use for place in legal)}",
            path=(position, "use"),
        )
