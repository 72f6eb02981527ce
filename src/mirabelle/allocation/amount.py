"""How much a step that removes units or layers takes away: a sparsity, or a goal on what the model costs."""

from __future__ import annotations

from typing import Any

from mirabelle.errors import UserError, gathered, raise_all
from mirabelle.task.goal import limit_of

AMOUNTS = ("macs", "parameters", "size", "latency")  # what a step that takes away units or layers may have a goal on


def hold_amount(step: Any) -> None:
    """Raise unless a step has a sparsity, or a goal that can be read.

    Args:
        step: a record with `sparsity` and the fields that `AMOUNTS` names.

    Raises:
        UserError: E111 both or neither, E113 a goal that cannot be read.
    """
    mistakes: list[UserError] = []
    names = [name for name in AMOUNTS if getattr(step, name) is not None]
    for name in names:
        with gathered(mistakes, name):
            limit_of(name, getattr(step, name), 1.0, where="")
    raise_all(mistakes)
    if (step.sparsity is None) == (not names):
        got = "both" if names else "neither"
        raise UserError(
            "E111", f"give a sparsity, or a goal of {', '.join(AMOUNTS)}; got {got}", 'sparsity = 0.5, or macs = "50%", say'
        )
