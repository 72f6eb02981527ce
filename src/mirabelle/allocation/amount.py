"""How much a step that removes units or layers takes away: a sparsity, or a goal on what the model costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mirabelle.errors import UserError, gathered, raise_all
from mirabelle.task.goal import limit_of

AMOUNTS = ("macs", "parameters", "size", "latency")  # what a step that removes units or layers may have a goal on


@dataclass(frozen=True)
class Amount:
    """Either a sparsity, or one or several goals.

    Args:
        sparsity: the fraction that is removed, in [0, 1).
        macs: multiply-accumulates of one sample that may be left, as `Goal` writes them: "2.3M", or "50%" of the model's.
        parameters: parameters that may be left.
        size: bytes of the parameters in float32 that may be left.
        latency: milliseconds of one call that may be left.
    """

    sparsity: float | None = None
    macs: str | float | None = None
    parameters: str | float | None = None
    size: str | float | None = None
    latency: str | float | None = None

    @staticmethod
    def of(step: Any) -> Amount:
        """The amount that a step asks for; its fields have the names of these."""
        return Amount(step.sparsity, *(getattr(step, name) for name in AMOUNTS))

    def check(self) -> None:
        """Raise unless there is a sparsity, or a goal that can be read.

        Raises:
            UserError: E111 both or neither, E113 a goal that cannot be read.
        """
        mistakes: list[UserError] = []
        names = [name for name in AMOUNTS if getattr(self, name) is not None]
        for name in names:
            with gathered(mistakes, name):
                limit_of(name, getattr(self, name), 1.0, where="")
        raise_all(mistakes)
        if (self.sparsity is None) == (not names):
            got = "both" if names else "neither"
            raise UserError(
                "E111", f"give a sparsity, or a goal of {', '.join(AMOUNTS)}; got {got}", 'sparsity = 0.5, or macs = "50%", say'
            )
