"""How much a step removes: a sparsity, or limits on the cost of the resulting model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mirabelle.errors import UserError, gathered, raise_all
from mirabelle.task.goal import limit_of

AMOUNTS = ("macs", "parameters", "size", "latency")  # the costs that a step may limit


@dataclass(frozen=True)
class Amount:
    """Either a sparsity, or one or several limits on the cost of the resulting model.

    A limit is a number, or a string such as "2.3M" or "50%" (of the present model's cost).

    Args:
        sparsity: the fraction to remove, in [0, 1).
        macs: most multiply-accumulate operations for one sample.
        parameters: most parameters.
        size: most bytes of the parameters in float32.
        latency: most milliseconds of one inference call.
    """

    sparsity: float | None = None
    macs: str | float | None = None
    parameters: str | float | None = None
    size: str | float | None = None
    latency: str | float | None = None

    @staticmethod
    def of(step: Any) -> Amount:
        """The amount that a step asks for, read from the step's fields of the same names."""
        return Amount(step.sparsity, *(getattr(step, name) for name in AMOUNTS))

    def check(self) -> None:
        """Raise an error unless there is either a sparsity, or limits that can be read.

        Raises:
            UserError: E111 if there are both or neither, E113 if a limit cannot be read.
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
                "E111",
                f"give either a sparsity or limits for {', '.join(AMOUNTS)}; got {got}",
                'for example: sparsity = 0.5, or macs = "50%"',
            )


def check_amount(step: Any, key: str, by_name: Mapping[str, int] | None) -> None:
    """Raise an error unless a step says its amount in one way.

    Args:
        step: with the fields of `Amount`.
        key: of the setting that says the amount by names instead.
        by_name: its value; None if it is not given.

    Raises:
        UserError: as `Amount.check`; E111 if there is another amount besides, or there are no names.
    """
    amount = Amount.of(step)
    if by_name is None:
        amount.check()
        return
    others = [name for name in ("sparsity", *AMOUNTS) if getattr(amount, name) is not None]
    if others or not by_name:
        what = f"{key} and {', '.join(others)}" if others else f"{key} without names"
        remedy = "keep one of them" if others else f'for example: {key} = {{ "conv1.weight" = 12 }}'
        raise UserError("E111", f"the amount is given in one way; got {what}", remedy)
