"""Units, the smallest parts that can be removed, and the equations between axes that tie them to each other.

An axis describes one dimension of a tensor of size n: None if no element can be removed, otherwise an integer array (n, K). Row
i lists the units of element i, which is kept only if all of these units are kept. Columns run from outer to inner. 0 is
padding: a unit that is always kept. For heads of width D, for example, row h · D + d of the axis is (head h, position d).

Equations are resolved as they arrive, in one pass. Units that must be equal are merged (union-find). A unit that must equal a
product of others is bound to them. Units whose equations cannot be satisfied otherwise are frozen, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Axis: TypeAlias = Array | None
_MOST_FACTORS = 6  # largest number of units that one unit may be bound to
_FIRST_CAPACITY = 1 << 12


@dataclass(frozen=True)
class _Column:
    """A column whose entry i is values[(i // stride) % size], with distinct values."""

    values: Array
    stride: int

    @property
    def size(self) -> int:
        return len(self.values)


class Units:
    """All units of a program and the relations between them.

    The attribute `reason` is recorded for units that are frozen from now on.
    """

    def __init__(self) -> None:
        self._count = 1  # unit 0 is always kept
        self._parent = np.zeros(_FIRST_CAPACITY, np.int32)
        self._frozen = np.zeros(_FIRST_CAPACITY, bool)
        self._frozen[0] = True
        self._bound = np.zeros((_FIRST_CAPACITY, _MOST_FACTORS), np.int32)
        self._why = np.zeros(_FIRST_CAPACITY, np.int32)
        self._tied_by = np.zeros(_FIRST_CAPACITY, np.int32)
        self._reasons: list[str] = [""]
        self._reason_numbers: dict[str, int] = {"": 0}
        self.reason = ""

    @property
    def count(self) -> int:
        """Number of units, including unit 0."""
        return self._count

    def fresh(self, size: int) -> Axis:
        """A new axis with one new unit per element; None for a single element, which cannot be removed."""
        if size <= 1:
            return None
        while self._count + size > len(self._parent):
            self._grow()
        units = np.arange(self._count, self._count + size, dtype=np.int32)
        self._parent[units] = units
        self._count += size
        return units[:, np.newaxis]

    def find(self, units: Array) -> Array:
        """The representative of each unit in the union-find structure."""
        roots = self._parent[units]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[units] = roots
        return roots

    def resolve(self, axis: Axis) -> Axis:
        """The axis with every unit replaced by its representative, bound units expanded and frozen units dropped."""
        if axis is None:
            return None
        rows = self._alive(axis)
        while True:
            bound = self._bound[rows, 0] != 0
            if not bound.any():
                break
            rows = self._alive(np.concatenate([self._written_out(rows[:, k], bound[:, k]) for k in range(rows.shape[1])], 1))
        rows = rows[:, rows.any(axis=0)]
        kept: list[int] = []
        for k in range(rows.shape[1]):
            if not any(np.array_equal(rows[:, k], rows[:, other]) for other in kept):
                kept.append(k)
        return rows[:, kept] if kept else None

    def freeze(self, axis: Axis) -> None:
        """Mark every unit of the axis as not removable, with the current reason."""
        rows = self.resolve(axis)
        if rows is None:
            return
        units = np.unique(rows)
        units = units[units != 0]
        self._frozen[units] = True
        self._why[units] = self._reason_number()

    def why(self, axis: Axis) -> list[str]:
        """The distinct reasons why units of an axis are frozen, in the order in which they were recorded."""
        if axis is None:
            return []
        seen, pending = set(), np.unique(axis)
        while len(pending):
            roots = np.unique(self.find(pending))
            seen |= set(np.unique(self._why[roots[self._frozen[roots]]]).tolist())
            inner = np.unique(self._bound[roots[self._bound[roots, 0] != 0]])
            pending = inner[inner != 0]
        return [self._reasons[number] for number in sorted(seen) if number]

    def tied_by(self, axis: Axis) -> list[str]:
        """The reasons why units of an axis were merged with each other, not only with those of another axis."""
        if axis is None:
            return []
        numbers = np.unique(self._tied_by[self.find(np.unique(axis))])
        return [self._reasons[number] for number in numbers.tolist() if number]

    def unify(self, one: Axis, other: Axis) -> None:
        """Require that element i of one axis is kept exactly if element i of the other is."""
        one, other = self.resolve(one), self.resolve(other)
        while True:
            if one is None or other is None:
                self.freeze(other if one is None else one)
                return
            if one.shape == other.shape and np.array_equal(one, other):
                return
            one, other = self._without_rows_that_stay(one, other)
            if one is None or other is None or self._tied(one, other):
                return
            self._freeze_smallest_column(one, other)
            one, other = self.resolve(one), self.resolve(other)

    def _tied(self, one: Array, other: Array) -> bool:
        """Try to satisfy the equation by merging or binding units. Both sides must be resolved, without rows of zeros only."""
        if one.shape[1] == other.shape[1] == 1:
            self._merge(one[:, 0], other[:, 0])
            return True
        if one.shape[1] > other.shape[1]:
            one, other = other, one
        if one.shape[1] == 1 and self._bind(one[:, 0], other):
            return True
        if one.shape[1] == other.shape[1] and all(map(_same_partition, one.T, other.T)):
            for mine, theirs in zip(one.T, other.T, strict=True):
                self._merge(mine, theirs)
            return True
        if self._refine(one, other):
            return True
        if one.shape[1] == 1:
            _, first = np.unique(one[:, 0], return_index=True)
            if len(first) < len(one) and self._bind(one[first, 0], other[first]):
                rest = np.setdiff1d(np.arange(len(one)), first)
                self.unify(one[rest], other[rest])
                return True
        return False

    def _without_rows_that_stay(self, one: Array, other: Array) -> tuple[Axis, Axis]:
        """Freeze rows whose other side is always kept, and return both sides without these rows."""
        stays = ~one.any(axis=1) | ~other.any(axis=1)
        if not stays.any():
            return one, other
        self.freeze(one[stays])
        self.freeze(other[stays])
        if stays.all():
            return None, None
        one, other = one[~stays], other[~stays]
        resolved = self.resolve(one), self.resolve(other)
        if resolved[0] is None or resolved[1] is None:
            self.freeze(one)
            self.freeze(other)
            return None, None
        return self._without_rows_that_stay(*resolved)  # type: ignore[arg-type]  # both are arrays here

    def _merge(self, one: Array, other: Array) -> None:
        """Merge the units of two columns element by element."""
        keep = (one != 0) & (other != 0)
        self.freeze(one[~keep][:, np.newaxis])
        self.freeze(other[~keep][:, np.newaxis])
        one, other = one[keep], other[keep]
        before = min(self._distinct(one), self._distinct(other))
        while True:
            mine, theirs = self.find(one), self.find(other)
            differ = mine != theirs
            if not differ.any():
                break
            low, high = np.minimum(mine, theirs)[differ], np.maximum(mine, theirs)[differ]
            frozen = self._frozen[low] | self._frozen[high]
            why = np.maximum(self._why[low], self._why[high])
            self._parent[high] = low
            self._frozen[low] |= frozen
            self._why[low] = np.maximum(self._why[low], why)
            self._tied_by[low] = np.maximum(self._tied_by[low], self._tied_by[high])
        if self._distinct(one) < before:
            self._tied_by[self.find(one)] = self._reason_number()

    def _distinct(self, units: Array) -> int:
        return len(np.unique(self.find(units)))

    def _bind(self, units: Array, rows: Array) -> bool:
        """Bind each unit to the product of the units in its row; False if that is impossible or circular."""
        if rows.shape[1] > _MOST_FACTORS or not units.all() or len(np.unique(units)) < len(units):
            return False
        if np.isin(rows, units).any():
            return False
        order = np.argsort(rows == 0, axis=1, kind="stable")  # zeros last: a non-zero first factor marks a bound unit
        self._bound[units, : rows.shape[1]] = np.take_along_axis(rows, order, axis=1)
        return True

    def _refine(self, one: Array, other: Array) -> bool:
        """Express both sides as products of common finer factors; False if their columns are not regular enough."""
        sides = [[_column(values) for values in side.T] for side in (one, other)]
        columns = [column for side in sides for column in side if column is not None]
        if len(columns) < one.shape[1] + other.shape[1] or any(column.size == 1 for column in columns):
            return False
        length = len(one)
        boundaries = sorted({1, length, *(c.stride for c in columns), *(c.stride * c.size for c in columns)})
        if any(high % low for low, high in pairwise(boundaries)):
            return False
        gaps = list(pairwise(boundaries))
        covered = [{gap for column in side if column is not None for gap in gaps if _covers(column, gap)} for side in sides]
        factors = {gap: self.fresh(gap[1] // gap[0]) for gap in covered[0] | covered[1]}
        for side, covers in zip(sides, (covered[1], covered[0]), strict=True):
            for column in side:
                assert column is not None, "all columns are regular"
                places = np.arange(column.size) * column.stride
                parts = [(gap, (places // gap[0]) % (gap[1] // gap[0])) for gap in reversed(gaps) if _covers(column, gap)]
                units = [factors[gap][index] for gap, index in parts]  # type: ignore[index]  # the size of a gap is above 1, so it has units
                self.unify(column.values[:, np.newaxis], np.concatenate(units, axis=1))
                for gap, _ in parts:
                    if gap not in covers:
                        self.freeze(factors[gap])
        return True

    def _freeze_smallest_column(self, one: Array, other: Array) -> None:
        columns = [*one.T, *other.T]
        smallest = min(columns, key=lambda column: len(np.unique(column)))
        self.freeze(smallest[:, np.newaxis])

    def _alive(self, rows: Array) -> Array:
        roots = self.find(rows)
        return np.where(self._frozen[roots], 0, roots)

    def _written_out(self, column: Array, bound: Array) -> Array:
        """Replace the bound units of a column by their factors; returns as many columns as needed."""
        if not bound.any():
            return column[:, np.newaxis]
        inner = np.where(bound[:, np.newaxis], self._bound[column], 0)
        inner[~bound, 0] = column[~bound]
        return inner[:, : int((inner != 0).any(axis=0).sum())]

    def _reason_number(self) -> int:
        if self.reason not in self._reason_numbers:
            self._reason_numbers[self.reason] = len(self._reasons)
            self._reasons.append(self.reason)
        return self._reason_numbers[self.reason]

    def _grow(self) -> None:
        more = len(self._parent)
        self._parent = np.concatenate([self._parent, np.zeros(more, np.int32)])
        self._frozen = np.concatenate([self._frozen, np.zeros(more, bool)])
        self._bound = np.concatenate([self._bound, np.zeros((more, _MOST_FACTORS), np.int32)])
        self._why = np.concatenate([self._why, np.zeros(more, np.int32)])
        self._tied_by = np.concatenate([self._tied_by, np.zeros(more, np.int32)])


def product(parts: Sequence[tuple[Axis, int]]) -> Axis:
    """The axis of a dimension that merges several dimensions, the last one varying fastest.

    Args:
        parts: axis and size of each merged dimension.

    Example:
        >>> product([(np.array([[1], [2]]), 2), (np.array([[3], [4], [5]]), 3)]).tolist()
        [[1, 3], [1, 4], [1, 5], [2, 3], [2, 4], [2, 5]]
    """
    places = np.indices([size for _, size in parts]).reshape(len(parts), -1)
    rows = [axis[place] for (axis, _), place in zip(parts, places, strict=True) if axis is not None]
    return np.concatenate(rows, axis=1) if rows else None


def _same_partition(one: Array, other: Array) -> bool:
    """Whether two columns have equal entries at the same pairs of positions."""
    pairs = one.astype(np.int64) << 32 | other
    return len(np.unique(pairs)) == len(np.unique(one)) == len(np.unique(other))


def _column(values: Array) -> _Column | None:
    """Read a column as a periodic sequence of distinct values; None if it is not one."""
    changes = np.flatnonzero(values != values[0])
    stride = int(changes[0]) if len(changes) else len(values)
    distinct = len(np.unique(values))
    period = stride * distinct
    if len(values) % period or not values.all():
        return None
    first = values[:period:stride]
    expected = first[(np.arange(len(values)) // stride) % distinct]
    return _Column(first, stride) if np.array_equal(values, expected) and len(np.unique(first)) == distinct else None


def _covers(column: _Column, gap: tuple[int, int]) -> bool:
    return column.stride <= gap[0] and gap[1] <= column.stride * column.size
