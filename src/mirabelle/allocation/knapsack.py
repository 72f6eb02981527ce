"""Choose one option for each item with the least total damage under one or several budgets, as an integer linear program.

Items are, for example, groups of channels, layers or tensors; their options are widths, bits or ranks. The damage is a sum over
items. A cost is a sum over tables, each indexed by the options of one item or of several (the cost of a convolution is the
product of its numbers of inputs and outputs). A table over several items has one variable for each combination of options,
which keeps the program linear: the sum of these variables over the other items equals the variable of an item's option.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError

Table = npt.NDArray[np.float64]
_STDOUT, _PRINTED = 1, b"HighsMipSolverData"
_SECONDS = 60.0  # time limit of the solver; afterwards the best solution found so far is used, with its gap to the optimum


@dataclass(frozen=True)
class Constraint:
    """A cost, as a sum of tables, and its limit.

    Args:
        name: for messages: "macs", "parameters", "latency".
        limit: the most that the cost may be.
        tables: by the ascending indices of the items whose options are the table's axes; () holds the constant part of the
            cost.
    """

    name: str
    limit: float
    tables: Mapping[tuple[int, ...], Table]

    def cost(self, choice: Sequence[int]) -> float:
        """The cost of a choice.

        Args:
            choice: the index of the chosen option of each item.
        """
        return float(sum(table[tuple(choice[item] for item in items)] for items, table in self.tables.items()))


@dataclass(frozen=True)
class Allocation:
    """The choice with the least damage within the budgets.

    Args:
        choice: the index of the chosen option of each item.
        damage: sum of the damages of the chosen options.
        costs: the cost of the choice under each budget, by the budget's name.
        gap: bound on the relative distance of the damage to the optimum; 0 if the choice is proven optimal.
    """

    choice: tuple[int, ...]
    damage: float
    costs: Mapping[str, float] = field(default_factory=dict)
    gap: float = 0.0


def allocate(damages: Sequence[npt.ArrayLike], budgets: Sequence[Constraint], *, gap: float = 0.0) -> Allocation:
    """Choose one option of every item so that the sum of damages is least and every budget holds (multiple-choice knapsack).

    min Σ_i d_i[c_i]  subject to  Σ_t T_t[c_i for the items i of t] ≤ limit, for every budget.

    Args:
        damages: for each item, the damage of each of its options, finite and ≥ 0.
        budgets: costs and their limits; tables are indexed by the items' positions in `damages`.
        gap: accepted relative distance of the damage to the optimum; closing the last gap is slow if many items are similar.

    Raises:
        UserError: E114 if no choice fits the budgets; the message names the least cost that can be reached for each of them.

    Example:
        >>> macs = Constraint("macs", 10.0, {(0, 1): np.outer([1.0, 2.0, 4.0], [2.0, 4.0])})
        >>> found = allocate([[9.0, 3.0, 0.0], [2.0, 0.0]], [macs])
        >>> found.choice, found.damage, found.costs
        ((2, 0), 2.0, {'macs': 8.0})

    Source: Kellerer, Pferschy, Pisinger 2004, "Knapsack Problems", chapter 11; Sherali, Adams 1990, doi:10.1137/0403036 (the
    tables over several items).
    """
    rows = [np.asarray(row, np.float64) for row in damages]
    unit = max((float(row.max()) for row in rows if len(row)), default=0.0) or 1.0
    program = _Program([row / unit for row in rows], budgets)
    result = program.solved(program.damage, budgets, gap)
    if result.x is None:
        raise _unreachable(program, budgets)
    choice = program.choice(result.x)
    total = float(sum(row[option] for row, option in zip(rows, choice, strict=True)))
    proven = float(result.mip_gap) if result.mip_gap is not None and math.isfinite(result.mip_gap) else 0.0
    return Allocation(choice, total, {budget.name: budget.cost(choice) for budget in budgets}, proven)


def least(budget: Constraint, options: Sequence[int]) -> float:
    """The smallest cost of any choice.

    Args:
        budget: gives the cost; its limit is ignored.
        options: the number of options of each item.
    """
    program = _Program([np.zeros(count) for count in options], [budget])
    result = program.solved(program.costs(budget), [])
    return budget.cost(program.choice(result.x))


def _unreachable(program: _Program, budgets: Sequence[Constraint]) -> UserError:
    alone = {budget.name: least(budget, [len(row) for row in program.rows]) for budget in budgets}
    low = [budget for budget in budgets if alone[budget.name] > budget.limit]
    limits = ", ".join(
        f"{budget.name} {budget.limit:.6g} (the least possible is {alone[budget.name]:.6g})" for budget in low or budgets
    )
    together = "" if low else " at the same time"
    return UserError(
        "E114",
        f"the limits cannot be reached{together}: {limits}",
        "raise the limit, or lower what every group, layer or tensor must keep",
    )


class _Program:
    """The integer program. Its variables: one for each option of each item, then one for each entry of each joint table."""

    def __init__(self, rows: Sequence[Table], budgets: Sequence[Constraint]) -> None:
        self.rows = rows
        self._starts = np.cumsum([0, *(len(row) for row in rows)])
        self._joint: dict[tuple[int, ...], int] = {}
        size = int(self._starts[-1])
        for items in (items for budget in budgets for items in budget.tables):
            if len(items) > 1 and items not in self._joint:
                self._joint[items] = size
                size += math.prod(len(rows[item]) for item in items)
        self.size = size
        self.damage = np.zeros(size)
        self.damage[: self._starts[-1]] = np.concatenate([np.zeros(0), *rows])

    def costs(self, budget: Constraint) -> Table:
        """The coefficient of each variable in the cost; the constant part is left out."""
        found = np.zeros(self.size)
        for items, table in budget.tables.items():
            if items:
                start = self._starts[items[0]] if len(items) == 1 else self._joint[items]
                found[start : start + table.size] += table.ravel()
        return found

    def solved(self, objective: Table, budgets: Sequence[Constraint], gap: float = 0.0) -> Any:
        from scipy.optimize import Bounds, LinearConstraint, milp

        constraints = [self._one_each()]
        for budget in budgets:
            scale = max(abs(budget.limit), 1e-30)  # so that the solver's tolerances do not depend on the unit
            fixed = float(budget.tables[()]) if () in budget.tables else 0.0
            constraints.append(
                LinearConstraint(self.costs(budget)[np.newaxis] / scale, -np.inf, (budget.limit - fixed) / scale)
            )
        whole = np.zeros(self.size)
        whole[: self._starts[-1]] = 1
        scale = float(np.abs(objective).max()) or 1.0
        with _nothing_printed:
            return milp(
                objective / scale,
                integrality=whole,
                bounds=Bounds(0, 1),
                constraints=constraints,
                options={"mip_rel_gap": gap, "time_limit": _SECONDS},
            )

    def choice(self, values: Table) -> tuple[int, ...]:
        parts = (values[start : start + len(row)] for start, row in zip(self._starts, self.rows, strict=False))
        return tuple(int(part.argmax()) for part in parts)

    def _one_each(self) -> Any:
        """The equality constraints: exactly one option of each item; sums over a joint table equal its items' variables."""
        from scipy.optimize import LinearConstraint
        from scipy.sparse import coo_array

        entries: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], float]] = []
        due: list[float] = []
        for start, row in zip(self._starts, self.rows, strict=False):
            columns = np.arange(start, start + len(row))
            entries.append((np.full(len(row), len(due)), columns, 1.0))
            due.append(1.0)
        for items, start in self._joint.items():
            shape = tuple(len(self.rows[item]) for item in items)
            numbers = start + np.arange(math.prod(shape)).reshape(shape)
            for place, item in enumerate(items):
                for option in range(shape[place]):
                    columns = numbers.take(option, axis=place).ravel()
                    entries.append((np.full(len(columns), len(due)), columns, 1.0))
                    entries.append((np.array([len(due)]), np.array([self._starts[item] + option]), -1.0))
                    due.append(0.0)
        lines = np.concatenate([lines for lines, _, _ in entries]).astype(np.int32)  # as scipy 1.14 needs them
        columns = np.concatenate([columns for _, columns, _ in entries]).astype(np.int32)
        values = np.concatenate([np.full(len(lines), value) for lines, _, value in entries])
        matrix = coo_array((values, (lines, columns)), shape=(len(due), self.size)).tocsr()
        return LinearConstraint(matrix, np.array(due), np.array(due))


def tables_of(polynomial: Mapping[tuple[int, ...], float], fractions: Sequence[Table]) -> dict[tuple[int, ...], Table]:
    """The cost tables of a polynomial in the fractions that the items keep.

    Args:
        polynomial: coefficients by the indices of items; an index occurs as often as the item is a factor.
        fractions: for each item, the fraction that each option keeps.
    """
    found: dict[tuple[int, ...], Table] = {}
    for key, factor in polynomial.items():
        items = tuple(sorted(set(key)))
        parts = [fractions[item] ** key.count(item) for item in items]
        table = factor * reduce(np.multiply.outer, parts, np.array(1.0))
        found[items] = found[items] + table if items in found else table
    return _absorbed(found)


def _absorbed(tables: Mapping[tuple[int, ...], Table]) -> dict[tuple[int, ...], Table]:
    """Add each table over several items to one over a superset of them, if there is one: fewer variables, equal costs."""
    found: dict[tuple[int, ...], Table] = {}
    for items in sorted(tables, key=len, reverse=True):
        home: Iterable[tuple[int, ...]] = (other for other in found if len(items) > 1 and set(items) <= set(other))
        other = next(iter(home), None)
        if other is None:
            found[items] = tables[items]
        else:
            shape = [tables[items].shape[items.index(item)] if item in items else 1 for item in other]
            found[other] = found[other] + tables[items].reshape(shape)
    return found


class _NothingPrinted:
    """Keeps what the solver prints from standard output, where it would stand in the middle of JSON.

    HiGHS 1.12 prints the name of a function at random times (https://github.com/ERGO-Code/HiGHS/issues/2783). What others print
    meanwhile appears afterwards.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._kept: int | None = None
        self._caught: IO[bytes] | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                _flush()
                with suppress(OSError):  # closed: nothing can be printed
                    self._kept = os.dup(_STDOUT)
                    self._caught = tempfile.TemporaryFile()  # closed by the last to leave
                    os.dup2(self._caught.fileno(), _STDOUT)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._kept is not None and self._caught is not None:
                _flush()
                os.dup2(self._kept, _STDOUT)
                os.close(self._kept)
                self._caught.seek(0)
                with suppress(OSError):
                    os.write(_STDOUT, b"".join(line for line in self._caught if not line.startswith(_PRINTED)))
                self._caught.close()
                self._kept = self._caught = None


def _flush() -> None:
    """Write out what Python and C have kept to be printed."""
    with suppress(AttributeError, OSError, ValueError):
        sys.stdout.flush()
    (ctypes.CDLL(None) if os.name == "posix" else ctypes.cdll.ucrtbase).fflush(None)


_nothing_printed = _NothingPrinted()
