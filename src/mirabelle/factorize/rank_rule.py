"""How the rank of each layer is found: by energy, by a number, by a fraction, or under limits on the cost of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mirabelle.allocation.amount import AMOUNTS, Amount
from mirabelle.errors import UserError

ONE_RANK = ("energy", "rank", "ratio", "ranks")  # settings that say the rank of each layer by itself
Keep = Literal["faster", "smaller"]


@dataclass(frozen=True)
class RankRule:
    """One of four settings for each layer alone, or limits for all layers together.

    Args:
        energy: share of the sum of squared singular values that is kept, in (0, 1].
        rank: rank of every layer.
        ratio: rank as a fraction of the full rank.
        ranks: patterns of names of layers -> rank.
        limits: limits on the cost of the whole model.
        multiple: ranks are rounded up to multiples of this; "measured" raises each one to what the kernels do as fast.
        keep: "faster" leaves alone what is not measured to be faster, "smaller" only what is not smaller.
        batch: number of samples of a measured call.
    """

    energy: float | None
    rank: int | None
    ratio: float | None
    ranks: Mapping[str, int] | None
    limits: Amount
    multiple: int | Literal["measured"]
    keep: Keep
    batch: int

    @staticmethod
    def of(step: Any) -> RankRule:
        """The rule that a step asks for, read from its fields of the same names; limits are those that the step has.

        Raises:
            UserError: E111 unless there is exactly one of energy, rank, ratio and limits; E113 if a limit cannot be read.
        """
        limits = Amount(None, *(getattr(step, name, None) for name in AMOUNTS))
        asked = [name for name in AMOUNTS if getattr(limits, name) is not None]
        ways = [name for name in ONE_RANK if hasattr(step, name)]
        given = [name for name in ways if getattr(step, name)]
        if len(given) + bool(asked) != 1:
            got, known = ", ".join((*given, *asked)) or "none", [name for name in AMOUNTS if hasattr(step, name)]
            message = f"give one of {', '.join(ways)}, or limits for {', '.join(known)}; got {got}"
            raise UserError("E111", message, 'for example: energy = 0.9, or parameters = "50%"')
        if asked:
            limits.check()
        counted = bool(asked) and limits.latency is None
        keep: Keep = getattr(step, "keep", None) or ("smaller" if counted else "faster")
        ranks = getattr(step, "ranks", None)
        return RankRule(step.energy, step.rank, step.ratio, ranks, limits, step.multiple, keep, getattr(step, "batch", 1))

    @property
    def for_each_layer(self) -> bool:
        """Whether the rank of each layer follows from the layer alone."""
        return any(getattr(self, name) is not None for name in ONE_RANK)

    @property
    def least_multiple(self) -> int:
        """The multiple of the ranks before they are raised by measuring."""
        return 1 if self.multiple == "measured" else self.multiple

    @property
    def measures(self) -> bool:
        """Whether ranks depend on measured times."""
        return self.keep == "faster" or self.multiple == "measured" or self.limits.latency is not None
