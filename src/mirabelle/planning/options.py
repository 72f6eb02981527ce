"""Which options of a part of a model are measured, and curves of what they change: monotone, on the hull, after a fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mirabelle.planning.measured import Part

if TYPE_CHECKING:
    from mirabelle.quantize.level_search import Option

_MOST_RANKS = 6  # options of a layer
_STEPS = 7  # options of the step of a layer's weight
_LEAST_UNITS = 2
_EIGHTHS = range(1, 9)  # of the units of a group, that may stay
_LEAST_LEFT = 1e-3  # of a change, after a fit


def rising(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(0, 0), and the pairs in the order of their first number, whose second never falls."""
    found = [(0.0, 0.0)]
    for expected, measured_change in sorted(pairs):
        if expected > found[-1][0]:
            found.append((expected, max(measured_change, found[-1][1])))
    return found


def coded_options(name: str, found: Sequence[Option]) -> Part:
    """A layer whose options are at most seven steps on the lower convex hull of bytes and change."""
    ordered = sorted(found, key=lambda one: one.size_bytes)
    hull: list[Option] = []
    for one in ordered:
        while hull and one.change >= hull[-1].change and one.size_bytes <= hull[-1].size_bytes:
            hull.pop()
        if hull and one.change >= hull[-1].change:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], one):
            hull.pop()
        hull.append(one)
    picked = [hull[place] for place in places(len(hull), _STEPS)]
    return Part(
        name, tuple(one.step for one in picked), tuple(one.change for one in picked), tuple(one.size_bytes for one in picked)
    )


def _slope(one: Option, other: Option) -> float:
    """How much the change falls for each byte from one option to another with more bytes."""
    return (one.change - other.change) / max(other.size_bytes - one.size_bytes, 1e-9)


def nearest_to(counts: Sequence[int], wanted: Sequence[float]) -> set[int]:
    """The counts that are nearest to those that are wanted."""
    return {min(counts, key=lambda count: abs(count - one)) for one in wanted} if counts else set()


def after_fitting(counts: Sequence[int], changes: Mapping[int, float], fitted: Mapping[int, float]) -> list[float]:
    """The changes for each count, times the share that a fit leaves of them: between measured ones by its logarithm."""
    known = sorted(fitted)
    logs = [math.log(min(max(fitted[count], _LEAST_LEFT), 1.0)) for count in known]
    return [changes[count] * math.exp(np.interp(count, known, logs)) if known else changes[count] for count in counts]


def counts_of(size: int, allowed: Sequence[int], multiple: int) -> tuple[int, ...]:
    """The allowed numbers of units nearest to eighths of all, ascending; the last is all.

    Args:
        size: all units.
        allowed: numbers of units that may stay.
        multiple: of which the numbers are multiples, if there are at least two of them.
    """
    unit = multiple if size >= 2 * multiple else 1
    least = max(min(size, _LEAST_UNITS), unit)
    wanted = {max(round(size * part / 8 / unit) * unit, least) for part in _EIGHTHS}
    return tuple(sorted({min(allowed, key=lambda one: abs(one - count)) for count in sorted(wanted)} | {size}))


def spread(levels: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """At most six of the ranks of a layer, evenly over the list."""
    return [levels[place] for place in places(len(levels), _MOST_RANKS)]


def places(count: int, most: int) -> Iterator[int]:
    """At most so many places of a list, the first and the last among them."""
    if count <= most:
        return iter(range(count))
    return iter(sorted({round(k * (count - 1) / (most - 1)) for k in range(most)}))


def falling(changes: Sequence[float]) -> tuple[float, ...]:
    """Changes that never grow when more stays: what grows by chance of measurement is set to the least before it."""
    return tuple(float(value) for value in np.maximum.accumulate(np.array(changes)[::-1])[::-1])
