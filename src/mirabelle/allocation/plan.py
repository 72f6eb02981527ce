"""How many units every item keeps: by a sparsity, in each item or over all items, or within limits with the least damage."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mirabelle.allocation.knapsack import Constraint, Table, allocate
from mirabelle.errors import UserError

_MOST_ENTRIES = 600  # of one table
_MOST_LEVELS = 17  # options of one item in one integer program
_ROUNDS = 8  # of planning and comparing the plan with the true cost
_GAP = 2e-3  # accepted distance of a plan to the optimum; scores are far less certain
_ROUNDING = 1e-9  # of a product of fractions and a number of units
_SAFELY = 0.999  # an exceeded limit is aimed at with this factor in the next round

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Item:
    """A set of n units, some of which are removed, starting with the least important.

    Args:
        name: for messages.
        scores: importance of each unit, ascending, (n,).
        damage: total damage after the first 0, 1, …, n units have been removed, (n + 1,).
        allowed: the numbers of units that may be kept, ascending; the last is n.
    """

    name: str
    scores: Array
    damage: Array
    allowed: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.scores)

    def at_least(self, count: int) -> int:
        """The smallest allowed number of kept units that is at least `count`."""
        return min(allowed for allowed in self.allowed if allowed >= count)


class Limit(Protocol):
    """The interface of a cost with a limit."""

    @property
    def name(self) -> str: ...

    @property
    def limit(self) -> float: ...

    def tables(self, fractions: Sequence[Table]) -> Mapping[tuple[int, ...], Table]:
        """Tables of the expected cost, for the fractions that the options of each item keep."""

    def cost(self, counts: Sequence[int]) -> float:
        """The true cost if each item keeps this number of units."""


def each_alone(items: Sequence[Item], sparsity: float) -> list[int]:
    """The number of units to keep in each item: of n units ⌊sparsity · n⌋ are removed, or the next smaller allowed number."""
    return [item.at_least(len(item) - math.floor(sparsity * len(item))) for item in items]


def all_together(items: Sequence[Item], sparsity: float, floor: float = 0.0) -> list[int]:
    """The number of units to keep in each item if a fraction `sparsity` of all units is removed, ranked over all items.

    Scores are divided by the mean score of their item first. Units that an item must keep are not ranked, so others go instead.

    Args:
        items: the sets of units.
        sparsity: fraction of all units to remove, in [0, 1).
        floor: each item of n units keeps at least ⌈floor · (1 − sparsity) · n⌉, in [0, 1].

    Example:
        >>> even, uneven = np.ones(10), np.array([0.0] * 9 + [10.0])
        >>> items = [Item(name, own, own, tuple(range(1, 11))) for name, own in (("even", even), ("uneven", uneven))]
        >>> all_together(items, 0.4), all_together(items, 0.4, floor=0.5)
        ([10, 2], [9, 3])
    """
    least = [item.at_least(math.ceil(floor * (1 - sparsity) * len(item) - _ROUNDING)) for item in items]
    free = [len(item) - stays for item, stays in zip(items, least, strict=True)]
    scores = np.concatenate(
        [item.scores[:own] / max(float(item.scores.mean()), 1e-30) for item, own in zip(items, free, strict=True)]
    )
    places = np.concatenate([np.arange(own) / len(item) for item, own in zip(items, free, strict=True)])  # orders equal scores
    owners = np.repeat(np.arange(len(items)), free)
    gone = np.lexsort((places, scores))[: math.floor(sparsity * sum(map(len, items)))]
    lost = np.bincount(owners[gone], minlength=len(items))
    return [item.at_least(len(item) - int(own)) for item, own in zip(items, lost, strict=True)]


def within_limits(items: Sequence[Item], limits: Sequence[Limit], *, uniform: bool) -> list[int]:
    """The number of units to keep in each item, so that every true cost is within its limit, with the least damage.

    A plan is made with the expected costs and then compared with the true ones. While a limit is exceeded, the next plan aims
    lower in the same proportion.

    Args:
        items: the sets of units.
        limits: costs and their limits.
        uniform: use the smallest sparsity that is the same for all items, instead of the least damage.

    Raises:
        UserError: E114 if a limit is exceeded even if every item keeps the fewest units.
    """
    _check_reachable(items, limits)
    aims = {limit.name: limit.limit for limit in limits}
    best: list[int] = [item.allowed[0] for item in items]
    for _ in range(_ROUNDS):
        counts = _uniform(items, limits, aims) if uniform else _with_least_damage(items, limits, aims)
        missed = {limit.name: limit.limit / cost for limit in limits if (cost := limit.cost(counts)) > limit.limit}
        if not missed:
            return counts
        aims |= {name: aims[name] * min(ratio, 1.0) * _SAFELY for name, ratio in missed.items()}
        if all(count == least for count, least in zip(counts, best, strict=True)):
            break
    return best


def _check_reachable(items: Sequence[Item], limits: Sequence[Limit]) -> None:
    least = [item.allowed[0] for item in items]
    for limit in limits:
        cost = limit.cost(least)
        if cost > limit.limit:
            raise UserError(
                "E114",
                f"{limit.name} of at most {limit.limit:,.6g} cannot be reached: the least possible is {cost:,.6g}",
                "raise the limit, lower `minimum` or `multiple`, or shorten `exclude`",
                path=(limit.name,),
            )


def _uniform(items: Sequence[Item], limits: Sequence[Limit], aims: Mapping[str, float]) -> list[int]:
    """The plan with the smallest uniform sparsity whose expected costs are within the limits."""

    def holds(counts: Sequence[int]) -> bool:
        fractions = [np.array([count / len(item)]) for item, count in zip(items, counts, strict=True)]
        expected = {limit.name: sum(float(table.sum()) for table in limit.tables(fractions).values()) for limit in limits}
        return all(expected[name] <= aim for name, aim in aims.items())

    low, high = 0.0, 1.0
    if holds(each_alone(items, 0.0)):
        return each_alone(items, 0.0)
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(each_alone(items, middle)) else (middle, high)
    return each_alone(items, high) if high < 1.0 else [item.allowed[0] for item in items]


def _with_least_damage(items: Sequence[Item], limits: Sequence[Limit], aims: Mapping[str, float]) -> list[int]:
    """The optimum over a coarse selection of allowed numbers of every item, then over finer selections around it."""
    most = _levels_at_once(items, limits)
    levels = [_spread(item.allowed, most) for item in items]
    while True:
        counts = _chosen(items, limits, aims, levels)
        finer = [_around(item.allowed, own, count) for item, own, count in zip(items, levels, counts, strict=True)]
        if finer == levels or all(len(own) == len(item.allowed) for item, own in zip(items, levels, strict=True)):
            return counts
        if all(_neighbours(item.allowed, own, count) for item, own, count in zip(items, levels, counts, strict=True)):
            return counts
        levels = finer


def _chosen(
    items: Sequence[Item], limits: Sequence[Limit], aims: Mapping[str, float], levels: Sequence[tuple[int, ...]]
) -> list[int]:
    damages = [item.damage[[len(item) - level for level in own]] for item, own in zip(items, levels, strict=True)]
    fractions = [np.array(own) / len(item) for item, own in zip(items, levels, strict=True)]
    budgets = [Constraint(limit.name, aims[limit.name], limit.tables(fractions)) for limit in limits]
    try:
        found = allocate(damages, budgets, gap=_GAP)
    except UserError:  # expected costs are not exact: close to the least possible cost, only the smallest numbers remain
        return [item.allowed[0] for item in items]
    return [own[option] for own, option in zip(levels, found.choice, strict=True)]


def _levels_at_once(items: Sequence[Item], limits: Sequence[Limit]) -> int:
    """The largest number of options for each item with which no table exceeds its size limit."""
    ones = [np.ones(1) for _ in items]
    widest = max((len(key) for limit in limits for key in limit.tables(ones)), default=1)
    return max(3, min(_MOST_LEVELS, int(_MOST_ENTRIES ** (1 / max(widest, 1)))))


def _spread(allowed: tuple[int, ...], most: int) -> tuple[int, ...]:
    places = np.unique(np.linspace(0, len(allowed) - 1, most).round().astype(int))
    return tuple(allowed[place] for place in places)


def _around(allowed: tuple[int, ...], levels: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The chosen number, its two neighbouring levels, and the numbers halfway between it and them."""
    at = levels.index(count)
    found = {count}
    for neighbour in (levels[max(at - 1, 0)], levels[min(at + 1, len(levels) - 1)]):
        found |= {neighbour, allowed[(allowed.index(neighbour) + allowed.index(count)) // 2]}
    return tuple(sorted(found))


def _neighbours(allowed: tuple[int, ...], levels: tuple[int, ...], count: int) -> bool:
    """Whether the levels contain both allowed numbers next to this one."""
    at = allowed.index(count)
    return {*allowed[max(at - 1, 0) : at + 2]} <= set(levels)


def allowed_counts(size: int, minimum: int, multiple: int) -> tuple[int, ...]:
    """The numbers of units that may be kept: multiples of `multiple` from `minimum` on, and `size` itself.

    Example:
        >>> allowed_counts(20, 3, 8)
        (8, 16, 20)
    """
    return (*(count for count in range(multiple, size, multiple) if count >= minimum), size)


Measured = Callable[[Sequence[int]], float]
