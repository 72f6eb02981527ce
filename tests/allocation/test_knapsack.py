"""Allocation: the exact optimum, under one budget or several, whatever the shape of the costs."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest

from mirabelle.allocation.knapsack import Constraint, allocate, least, tables_of
from mirabelle.errors import UserError


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    draw = np.random.default_rng(seed)
    options = (3, 4, 2, 3)
    damages = [draw.random(count) for count in options]
    tables = {(0, 1): draw.random((3, 4)), (1, 2, 3): draw.random((4, 2, 3)), (3,): draw.random(3), (): np.array(0.1)}
    first = Constraint("macs", float(draw.uniform(0.6, 1.4)), tables)
    second = Constraint("bytes", float(draw.uniform(0.3, 1.2)), {(0,): draw.random(3), (0, 2): draw.random((3, 2))})
    choices = [
        choice
        for choice in itertools.product(*map(range, options))
        if all(budget.cost(choice) <= budget.limit for budget in (first, second))
    ]
    if not choices:
        with pytest.raises(UserError, match="E114"):
            allocate(damages, [first, second])
        return
    found = allocate(damages, [first, second])
    best = min(sum(row[option] for row, option in zip(damages, choice, strict=True)) for choice in choices)
    assert found.damage == pytest.approx(best, abs=1e-9)
    assert found.choice in choices
    assert found.costs == {budget.name: budget.cost(found.choice) for budget in (first, second)}


def test_what_cannot_be_reached_is_told_with_the_least() -> None:
    bits = Constraint("bits", 5.0, {(0,): np.array([2.0, 4.0]), (1,): np.array([4.0, 8.0])})
    assert least(bits, [2, 2]) == 6.0
    with pytest.raises(UserError, match=r"E114.*the limits cannot be reached: bits 5 \(the least possible is 6\)"):
        allocate([[1.0, 0.0], [1.0, 0.0]], [bits])


def test_budgets_that_hold_one_by_one_but_not_together_are_told_so() -> None:
    one = Constraint("macs", 1.0, {(0,): np.array([1.0, 2.0])})
    other = Constraint("bytes", 1.0, {(0,): np.array([2.0, 1.0])})
    with pytest.raises(UserError, match=r"E114.*the limits cannot be reached at the same time"):
        allocate([[0.0, 0.0]], [one, other])


def test_a_polynomial_becomes_tables() -> None:
    fractions = [np.array([0.5, 1.0]), np.array([0.25, 1.0]), np.array([0.2, 0.6, 1.0])]
    polynomial = {(): 3.0, (0,): 2.0, (0, 1): 8.0, (1, 1): 16.0, (0, 1, 2): 5.0}
    tables = tables_of(polynomial, fractions)
    budget = Constraint("macs", 0.0, tables)
    for choice in itertools.product(range(2), range(2), range(3)):
        a, b, c = (own[option] for own, option in zip(fractions, choice, strict=True))
        assert budget.cost(choice) == pytest.approx(3 + 2 * a + 8 * a * b + 16 * b * b + 5 * a * b * c)
    assert set(tables) == {(), (0,), (1,), (0, 1, 2)}, "a table of several items within a larger one needs no variables"


def test_many_alike_items_are_solved_in_time() -> None:
    draw = np.random.default_rng(0)
    count = 60
    damages = [np.sort(draw.random(8))[::-1] for _ in range(count)]
    fractions = [np.linspace(0.2, 1, 8)] * count
    polynomial = {(k, k + 1): 1.0 + draw.random() for k in range(count - 1)}
    limit = 0.5 * sum(polynomial.values())
    found = allocate(damages, [Constraint("macs", limit, tables_of(polynomial, fractions))], gap=1e-3)
    assert found.costs["macs"] <= limit * (1 + 1e-6)
    assert found.gap <= 1e-3


PRINTING = """
import ctypes, sys
import numpy as np
import scipy.optimize
from mirabelle.allocation.knapsack import Constraint, allocate

real, libc = scipy.optimize.milp, ctypes.CDLL(None)

def printing(*args, **kwargs):
    libc.puts(b"HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();")
    return real(*args, **kwargs)

scipy.optimize.milp = printing
print("before", flush=True)
libc.puts(b"of others")
CALL
sys.stderr.write(f"solved: {found.choice}")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="puts of the C library is called")
@pytest.mark.parametrize("closed", [False, True])
def test_what_the_solver_prints_does_not_reach_standard_output(*, closed: bool) -> None:
    tables = "{(k,): np.array([0.0, 1.0]) for k in range(3)}"
    call = f'found = allocate([np.array([1.0, 0.0])] * 3, [Constraint("bytes", 2.0, {tables})])'
    code = PRINTING.replace("CALL", ("import os; libc.fflush(None); os.close(1)\n" if closed else "") + call)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert "solved: (" in done.stderr
    assert done.stdout.splitlines() == ["before", "of others"]


OVERLAPPING = """
import os
from mirabelle.allocation.knapsack import _nothing_printed

with _nothing_printed:
    _nothing_printed.__enter__()  # another thread begins
    print("of another thread", flush=True)
_nothing_printed.__exit__()
print("after", flush=True)
"""


def test_solvers_that_overlap_lose_nothing_that_others_print() -> None:
    done = subprocess.run([sys.executable, "-c", OVERLAPPING], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == ["of another thread", "after"]
