"""The result of a run."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from mirabelle.errors import UserError
from mirabelle.report import ConstantAnswer
from mirabelle.run.run import Run
from mirabelle.runtime.gates import Gate
from mirabelle.task.goal import Shortfall
from mirabelle.task.profile import Profile


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Args:
        model: the compressed module, in eval mode.
        profile: measurements of the compressed model; its metric is that on the test set.
        start: measurements of the model before compression; its metric is that on the test set.
        shortfalls: the parts of the goal that are not met; empty if the goal is met.
        gates: name of each check of the artifact -> its outcome.
        folder: contains `model.onnx`, `model.mira`, `report.html` and the other files of the run.
        constant: the best answer that is the same for every input, and whether the models before and after are better than
            it; None if no such answer is known for the outputs of the task.
    """

    model: nn.Module
    profile: Profile
    start: Profile
    shortfalls: Sequence[Shortfall]
    gates: Mapping[str, Gate]
    folder: pathlib.Path
    constant: ConstantAnswer | None = None

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return not self.shortfalls


def tell_end(run: Run, shortfalls: Sequence[Shortfall]) -> None:
    """Record the end of a run."""
    run.event("end", met=not shortfalls, shortfalls=[str(shortfall) for shortfall in shortfalls])


def checked(result: Result) -> Result:
    """Return the result; raises E302 if a gate failed."""
    for name, gate in result.gates.items():
        if not gate.passed:
            message, remedy = f"gate {name} failed: {gate.detail}", f"do not ship {result.folder}; see report.html there"
            raise UserError("E302", message, remedy)
    return result
