"""A list of steps, its order checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mirabelle.errors import UserError, gathered, raise_all
from mirabelle.step import STAGES, NeedsTraining, Step, step_from_data, step_to_data, use_of
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
        mistakes: list[UserError] = []
        for position, (before, after) in enumerate(zip(self.steps, self.steps[1:], strict=False), start=1):
            begins = after.first_stage if isinstance(after, Joint) else after.stage
            if STAGES.index(begins) < STAGES.index(before.stage):
                legal = sorted(self.steps, key=lambda step: STAGES.index(step.stage))
                mistakes.append(
                    UserError(
                        "E105",
                        f"{use_of(after)} (step {position + 1}) cannot follow {use_of(before)} (step {position})",
                        f"legal order: {', '.join(use_of(step) for step in legal)}",
                        path=(position, "use"),
                    )
                )
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
        raise_all(mistakes)
        return Recipe(steps)

    def to_data(self) -> list[dict[str, Any]]:
        return [step_to_data(step) for step in self.steps]
