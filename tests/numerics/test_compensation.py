"""Column by column with compensation: against Optimal Brain Surgeon by hand, least squares, and rounding to the nearest."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mirabelle.numerics.compensation import Removing, Rounding, compensated, inverse_factor
from mirabelle.numerics.group_codes import Grid, decoded, nearest


def inputs_of(columns: int, rows: int = 400) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(rows, columns, dtype=torch.float64) @ torch.randn(columns, columns, dtype=torch.float64)


def error(weight: Tensor, changed: Tensor, moments: Tensor) -> float:
    apart = weight - changed.double()
    return float((apart @ moments * apart).sum())


class Zeroed:
    """Sets some columns to zero."""

    block = 3

    def __init__(self, zeros: set[int]) -> None:
        self._zeros = zeros

    def begin(self, first: int, rest: Tensor, spread: Tensor) -> None:
        assert rest.shape[1] == len(spread)

    def change(self, position: int, column: Tensor) -> Tensor:
        return torch.zeros_like(column) if position in self._zeros else column


def test_the_columns_that_follow_are_the_least_squares_solution() -> None:
    """With the first columns removed, the others are what a regression on them gives."""
    x = inputs_of(7)
    weight = torch.randn(2, 7, dtype=torch.float64)
    moments = x.T @ x / len(x)
    found = compensated(weight, inverse_factor(moments, 1e-12), Zeroed({0, 1, 2, 3}))
    best = np.linalg.lstsq(x[:, 4:].numpy(), (x @ weight.T).numpy(), rcond=None)[0].T
    assert not found[:, :4].any()
    np.testing.assert_allclose(found[:, 4:].numpy(), best, rtol=1e-5)


def test_rounding_by_hand() -> None:
    """Two columns, one row: after w₁ = 1.4 becomes 1, w₂ gets 0.4 · H₁₂ / H₂₂ more."""
    moments = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    weight = torch.tensor([[1.4, 0.2]], dtype=torch.float64)
    rule = Rounding(weight, 2, Grid(4, clipping=False), order=torch.tensor([0, 1]))
    scale = 0.2  # 1.4 / 7
    compensated(weight, inverse_factor(moments, 1e-12), rule)
    assert rule.codes().scale.item() == pytest.approx(scale, rel=4e-3)
    coarse = Rounding(torch.tensor([[7.0, 0.0]]), 2, Grid(4, clipping=False), order=torch.tensor([0, 1]))
    found = compensated(weight, inverse_factor(moments, 1e-12), coarse)
    assert found.tolist() == [[1.0, 1.0]]  # 0.2 + 0.4 · 1 = 0.6, not the nearest of 0.2


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("settings", [{}, {"zero_points": True}])
@pytest.mark.parametrize(("bits", "group_size"), [(2, 16), (3, 40), (4, 300)])
def test_the_outputs_differ_less_than_with_the_nearest_values(
    bits: int, group_size: int, settings: dict[str, Any], order: bool
) -> None:
    x = inputs_of(300, 1000)
    weight = torch.randn(20, 300, dtype=torch.float64)
    moments = x.T @ x / len(x)
    grid = Grid(bits, **settings)
    positions = moments.diagonal().argsort(descending=True) if order else torch.arange(300)
    rule = Rounding(weight, group_size, grid, order=positions if order else None)
    compensated(weight[:, positions], inverse_factor(moments[positions][:, positions], 0.01), rule)
    found, plain = rule.codes(), nearest(weight, group_size, grid)
    errors = [error(weight, decoded(own.codes, own.scale, group_size), moments) for own in (found, plain)]
    assert errors[0] < 0.7 * errors[1]
    zero = 0 if found.zero_point is None else found.zero_point.repeat_interleave(group_size, 1)[:, :300]
    assert int((found.codes + zero).max()) <= 2 ** (bits - 1) - 1
    assert int((found.codes + zero).min()) >= -(2 ** (bits - 1))


def test_of_all_roundings_of_a_small_row_it_is_among_the_best() -> None:
    x = inputs_of(6)
    moments = x.T @ x / len(x)
    weight = torch.randn(1, 6, dtype=torch.float64)
    scale = nearest(weight, 6, Grid(3)).scale.double()
    rule = Rounding(weight, 6, Grid(3))
    compensated(weight, inverse_factor(moments, 1e-9), rule)
    scale = rule.codes().scale.double()
    every = torch.tensor(list(itertools.product(range(-4, 4), repeat=6)), dtype=torch.float64) * scale
    apart = weight - every
    costs = ((apart @ moments) * apart).sum(1).sort().values
    own = error(weight, decoded(rule.codes().codes, rule.codes().scale, 6), moments)
    assert own <= costs[len(costs) // 1000]


def test_zeros_that_are_kept_stay_zero_and_are_made_up_for() -> None:
    x = inputs_of(64)
    moments = x.T @ x / len(x)
    weight = torch.randn(5, 64, dtype=torch.float64)
    weight[:, ::2] = 0
    rule = Rounding(weight, 32, Grid(4), kept=weight != 0)
    compensated(weight, inverse_factor(moments, 0.01), rule)
    assert not rule.codes().codes[:, ::2].any()
    plain = nearest(weight, 32, Grid(4))
    own = rule.codes()
    assert error(weight, decoded(own.codes, own.scale, 32), moments) < error(
        weight, decoded(plain.codes, plain.scale, 32), moments
    )


def test_removing_keeps_the_outputs_better_than_by_magnitude_and_removes_what_was_asked_for() -> None:
    x = inputs_of(200, 800)[:, :60] @ torch.randn(60, 200, dtype=torch.float64) + torch.randn(800, 200, dtype=torch.float64)
    moments = x.T @ x / len(x)
    weight = torch.randn(10, 200, dtype=torch.float64)
    found = compensated(weight, inverse_factor(moments, 0.01), Removing(sparsity=0.55))
    assert int((found == 0).sum()) == int(0.55 * weight.numel())
    limit = weight.abs().flatten().kthvalue(int(0.55 * weight.numel())).values
    assert error(weight, found, moments) < 0.7 * error(weight, weight * (weight.abs() > limit), moments)
    pattern = compensated(weight, inverse_factor(moments, 0.01), Removing(of_each=(2, 4)))
    assert bool(((pattern == 0).reshape(10, 50, 4).sum(2) == 2).all())


def test_inputs_that_are_all_zero_or_depend_on_each_other_have_a_factor() -> None:
    assert torch.equal(inverse_factor(torch.zeros(3, 3), 0.01), torch.eye(3))
    same = torch.ones(4, 4)
    upper = inverse_factor(same, 1e-8)  # in float32, a damping of 1e-8 is lost
    assert bool(upper.isfinite().all())


@pytest.mark.parametrize("weight", [torch.ones(1, 7).double(), torch.ones(7, 3).double().t()])
def test_the_weight_that_is_given_stays(weight: Tensor) -> None:
    """One row, or a transposed matrix, is together in memory by column already."""
    x = inputs_of(7)
    changed = compensated(weight, inverse_factor(x.T @ x / len(x), 1e-9), Zeroed({0, 1}))
    assert bool((weight == 1).all())
    assert not changed[:, :2].any()
