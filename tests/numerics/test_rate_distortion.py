"""Levels by output error and bits: against brute force, and against rounding to the nearest."""

from __future__ import annotations

import pytest
import torch

from mirabelle.numerics.entropy import MOST, level_model
from mirabelle.numerics.rate_distortion import LevelRounding, Moment, fitted_levels


def inputs(columns: int, rows: int = 600) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(rows, columns).double() @ torch.randn(columns, columns).double() * 0.3


def test_a_level_is_the_cheapest_of_all() -> None:
    """The neighbours, the next one towards 0, and 0 are enough where costs grow with the magnitude."""
    torch.manual_seed(0)
    numbers = torch.randn(40, 30) * 3
    model = level_model(numbers.round())
    pressure, precision = 0.3, 1.7
    rule = LevelRounding([1.0], pressure, [model], None, numbers.shape)
    column = 4
    chance = torch.sigmoid(model.logit.expand_as(numbers)[:, column].double())  # of a level that is not 0
    costs = []
    for level in range(-MOST, MOST + 1):
        bits = -torch.log2(chance) + float(model.magnitude[level + MOST]) if level else -torch.log2(1 - chance)
        costs.append((numbers[:, column] - level) ** 2 * precision + pressure * bits)
    found = rule.nearest(numbers[:, column], (slice(None), column), precision)
    own = torch.stack([costs[int(level) + MOST][row] for row, level in enumerate(found)])
    torch.testing.assert_close(own, torch.stack(costs).min(0).values, rtol=1e-5, atol=1e-5)
    assert 0 < int((found != numbers[:, column].round()).sum()) < len(found)


def test_outputs_change_less_than_by_rounding_to_the_nearest_for_fewer_bits() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(1, 48, 64).double(), inputs(64)
    moments = x.T @ x / len(x)
    (found,) = fitted_levels(weight, [Moment(moments, 0.01)], steps=[0.8])
    nearest = (weight[0] / 0.8).round()
    change = x @ (weight[0] - 0.8 * nearest).T
    assert found.error < 0.6 * float(change.square().sum() / len(x))
    assert found.bits < 1.02 * float(level_model(nearest).bits(nearest))
    own = x @ (weight[0] - found.values[0].double()).T
    assert found.error == pytest.approx(float(own.square().sum() / len(x)), rel=1e-5)


def test_outputs_keep_their_size() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(1, 48, 64).double(), inputs(64)
    (found,) = fitted_levels(weight, [Moment(x.T @ x / len(x), 0.01)], steps=[1.5])
    due, own = x @ weight[0].T, x @ found.values[0].double().T
    assert float((due * own).sum() / due.square().sum()) == pytest.approx(1.0, abs=1e-5)


def test_zeros_stay_where_they_are_to_stay_and_groups_are_apart() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 4, 18).double()
    weight[weight.abs() < 0.5] = 0
    moments = [Moment((x.T @ x / len(x)), 0.01) for x in (inputs(18), inputs(18) * 0.1, inputs(18))]
    (found,) = fitted_levels(weight, moments, steps=[0.3], keeps_zeros=True)
    assert not found.levels[weight == 0].any()
    assert found.levels.shape == weight.shape
    assert found.levels[weight != 0].any()


@pytest.mark.parametrize("moment", [Moment(None, 0.01), Moment(torch.zeros(5, 5).double(), 0.01)])
def test_a_weight_of_zeros_and_inputs_of_zeros(moment: Moment) -> None:
    (found,) = fitted_levels(torch.zeros(1, 4, 5).double(), [moment], steps=[1.0])
    assert not found.levels.any()
    assert (found.error, found.step) == (0.0, 1.0)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("rows", [1, 8])
def test_the_weight_is_not_changed_and_the_error_is_that_of_the_values(rows: int, *, turned: bool) -> None:
    """One row, or a transposed matrix, is together in memory by column already."""
    torch.manual_seed(0)
    matrix = torch.randn(rows, 20).double()
    weight = (matrix.t().contiguous().t() if turned else matrix)[None]
    before, x = weight.clone(), inputs(20)
    (found,) = fitted_levels(weight, [Moment(x.T @ x / len(x), 0.01)], steps=[0.7])
    assert torch.equal(weight, before)
    own = x @ (weight[0] - found.levels[0].double() * found.step).T
    assert found.error == pytest.approx(float(own.square().sum() / len(x)), rel=1e-6)
    assert found.error > 0


@pytest.mark.parametrize("moment", [True, False])
def test_steps_that_are_tried_together_give_what_each_gives_alone(*, moment: bool) -> None:
    torch.manual_seed(0)
    weight, x, steps = torch.randn(2, 5, 18).double(), inputs(18), [2.0, 0.7, 0.7, 0.2]
    weight[weight.abs() < 0.3] = 0
    moments = [Moment(x.T @ x / len(x) if moment else None, 0.01)] * 2
    together = fitted_levels(weight, moments, steps, keeps_zeros=True)
    for step, one in zip(steps, together, strict=True):
        (alone,) = fitted_levels(weight, moments, [step], keeps_zeros=True)
        assert torch.equal(one.levels, alone.levels)
        assert (one.start, one.step, one.error) == (step, pytest.approx(alone.step), pytest.approx(alone.error))
        assert one.bits == pytest.approx(alone.bits)
    assert together[0].bits < together[1].bits < together[3].bits
