"""A layer that can be factorized: what each rank loses, costs, and becomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt

from mirabelle.model.replacement import Replacement
from mirabelle.runtime.timing import Operator, milliseconds

Ranks = tuple[int, ...]  # one for each mode of the weight that is factorized; () leaves the layer as it is
_ROUNDING = 1e-9  # of shares of squares
_MOST_LEVELS = 24  # options of one layer under a limit


@dataclass(frozen=True)
class Cost:
    """The cost of a layer, or of its factors.

    Args:
        parameters: number of weights, without biases.
        macs: multiply-accumulates for one sample.
        operators: of one call of the model, to be timed.
    """

    parameters: int
    macs: int
    operators: tuple[Operator, ...]

    def smaller_than(self, other: Cost) -> bool:
        """Whether there are fewer weights and not more products; an embedding has no products to compare with."""
        return self.parameters < other.parameters and (not other.macs or self.macs < other.macs)


@dataclass(frozen=True)
class Candidate:
    """A layer that can be factorized.

    Args:
        name: of the layer.
        lost: for each mode the share of the squared norm that ranks 0, 1, …, full lose. Over several modes the sum is an upper
            bound (De Lathauwer, De Moor, Vandewalle 2000).
        cost: ranks -> cost; () is the layer as it is.
        made: ranks -> the factorized layer.
    """

    name: str
    lost: tuple[npt.NDArray[np.float64], ...]
    cost: Callable[[Ranks], Cost]
    made: Callable[[Ranks], Replacement]

    @property
    def full(self) -> Ranks:
        """The full rank of each mode."""
        return tuple(len(own) - 1 for own in self.lost)

    def share_lost(self, ranks: Ranks) -> float:
        """The share of the squared norm that is lost, in [0, 1]; 0 for ()."""
        return min(1.0, sum(float(own[rank]) for own, rank in zip(self.lost, ranks, strict=False)))

    def smaller(self, ranks: Ranks) -> bool:
        """Whether factors of these ranks are smaller than the layer."""
        return self.cost(ranks).smaller_than(self.cost(()))

    def why_not_smaller(self, ranks: Ranks) -> str:
        """Why factors of these ranks do not pay, with the numbers of weights or of products."""
        own, dense = self.cost(ranks), self.cost(())
        if own.parameters >= dense.parameters:
            return f"factors of rank {shown(ranks)} would have {own.parameters:,} weights, the layer has {dense.parameters:,}"
        return f"factors of rank {shown(ranks)} would take {own.macs:,} MACs, the layer takes {dense.macs:,}"

    def keeping(self, energy: float, multiple: int) -> Ranks:
        """The least ranks, as multiples, that keep this share of the squared norm."""
        allowed = (1.0 - energy) / len(self.lost) + _ROUNDING
        return self.rounded(tuple(int(np.argmax(own <= allowed)) for own in self.lost), multiple)

    def rounded(self, ranks: Ranks, multiple: int) -> Ranks:
        """The next multiples, at least one and at most the full ranks."""
        pairs = zip(ranks, self.full, strict=True)
        return tuple(min(max(math.ceil(rank / multiple), 1) * multiple, full) for rank, full in pairs)

    def fraction(self, ratio: float, multiple: int) -> Ranks:
        """The ranks that are this fraction of the full ones, as multiples."""
        return self.rounded(tuple(math.ceil(ratio * full - _ROUNDING) for full in self.full), multiple)

    def levels(self, multiple: int) -> list[Ranks]:
        """The ranks among which a limit chooses, ascending, and () as the last: of factors that are smaller than the layer."""
        found = list(dict.fromkeys(self._steps(multiple)))
        if len(found) > _MOST_LEVELS:
            places = np.unique(np.linspace(0, len(found) - 1, _MOST_LEVELS).round().astype(int))
            found = [found[place] for place in places]
        return [*found, ()]

    def _steps(self, multiple: int) -> Iterator[Ranks]:
        """Multiples of the mode with the highest full rank; the other modes lose as much as it."""
        widest = int(np.argmax(self.full))
        for rank in count(multiple, multiple):
            if rank >= self.full[widest]:
                return
            allowed = float(self.lost[widest][rank]) + _ROUNDING
            others = self.rounded(tuple(int(np.argmax(own <= allowed)) for own in self.lost), multiple)
            ranks = tuple(rank if mode == widest else own for mode, own in enumerate(others))
            if not self.smaller(ranks):
                return
            yield ranks


class CandidateTimes:
    """Milliseconds of layers and of their factors, as sums over single operators; each operator is measured once.

    Args:
        threads: number of threads of an operator.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._known: dict[Operator, float] = {}

    def __call__(self, pairs: Sequence[tuple[Candidate, Ranks]]) -> list[float]:
        """The time of each layer with these ranks."""
        needed = [candidate.cost(ranks).operators for candidate, ranks in pairs]
        missing = [operator for operators in needed for operator in operators if operator not in self._known]
        self._known |= milliseconds(missing, self._threads)
        return [sum(self._known[operator] for operator in operators) for operators in needed]


def shown(ranks: Ranks) -> str:
    """Ranks in words: "8", or "8 x 12" for several modes."""
    return " x ".join(map(str, ranks))
