"""The cost of levels: that of the frequencies, of rows and columns, and its gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mirabelle.numerics.entropy import first_step, level_model


def entropy(shares: list[float]) -> float:
    return -sum(share * math.log2(share) for share in shares if share)


def test_bits_of_one_row_are_those_of_its_frequencies() -> None:
    torch.manual_seed(0)
    levels = torch.tensor([0.0] * 8000 + [1.0] * 500 + [-1.0] * 500 + [2.0] * 400 + [-2.0] * 600)[torch.randperm(10_000)]
    bits = float(level_model(levels[None]).bits(levels[None]))
    expected = 10_000 * (entropy([0.8, 0.2]) + 0.2 * (1 + entropy([0.5, 0.5])))  # the sign takes a bit
    assert bits == pytest.approx(expected, rel=2e-3)


def test_empty_rows_and_columns_cost_next_to_nothing() -> None:
    torch.manual_seed(0)
    dense = (torch.rand(20, 30) < 0.5).float() * torch.randn(20, 30).sign()
    wide = torch.zeros(200, 300)
    wide[:20, :30] = dense
    small, large = (float(level_model(one).bits(one)) for one in (dense, wide))
    assert small < large < 1.25 * small
    shuffled = wide.flatten()[torch.randperm(wide.numel())].reshape(wide.shape)
    assert float(level_model(shuffled).bits(shuffled)) > 2.5 * large


def test_rows_of_unequal_density_are_cheaper_than_their_mean_density() -> None:
    torch.manual_seed(0)
    density = torch.linspace(0.01, 0.6, 100)[:, None]
    levels = (torch.rand(100, 200) < density).float()
    by_row = sum(200 * entropy([float(row.mean()), 1 - float(row.mean())]) for row in levels)
    mask_bits = float(level_model(levels).bits(levels)) - float(levels.sum())  # without the signs
    assert 0.97 * by_row < mask_bits < 1.02 * by_row < 20_000 * entropy([float(levels.mean()), 1 - float(levels.mean())])


def test_numbers_beyond_the_largest_level_have_no_slope() -> None:
    """Biases that all had ±127 steps were driven on without end: their gradient grew as their step fell."""
    numbers = torch.tensor([[300.0, -300.0, 127.0, -127.0, 126.5, -126.5]])
    slopes = level_model(numbers.round().clamp(-127, 127)).slopes(numbers)
    assert (slopes != 0).tolist() == [[False, False, False, False, True, True]]


def test_the_slope_is_the_difference_of_the_costs_of_the_neighbours() -> None:
    torch.manual_seed(0)
    numbers = torch.randn(6, 7) * 1.5
    model = level_model(numbers.round())
    falling = replace(model, magnitude=model.falling)
    slopes = model.slopes(numbers)
    for row, column in ((0, 0), (3, 4), (5, 6)):
        ends = []
        for end in (numbers[row, column].floor(), numbers[row, column].floor() + 1):
            other = numbers.round()
            other[row, column] = end
            ends.append(float(falling.bits(other)))
        assert float(slopes[row, column]) == pytest.approx(ends[1] - ends[0], abs=1e-3)


def test_smaller_magnitudes_pay_even_where_all_are_as_frequent() -> None:
    levels = torch.arange(1.0, 9).repeat(1, 50)
    model = level_model(levels)
    exact, falling = (one[128:136] for one in (model.magnitude, model.falling))
    assert float((exact - exact.mean()).abs().max()) < 0.02
    assert bool((falling.diff() > 0.02).all())


@pytest.mark.parametrize("bits", [0.5, 1.2, 4.0])
def test_the_first_step_gives_the_levels_an_entropy(bits: float) -> None:
    torch.manual_seed(0)
    values = torch.randn(20_000)
    values[:9000] = 0  # pruned, and not counted
    levels = (values[9000:] / first_step(values, bits)).round()
    shares = torch.unique(levels, return_counts=True)[1] / 11_000
    assert float(-(shares * shares.log2()).sum()) == pytest.approx(bits, abs=0.02)
    assert first_step(torch.zeros(4), bits) == 1
    assert 0 < first_step(torch.full((4,), 0.5), bits) < 8


@pytest.mark.parametrize("levels", [torch.zeros(3, 4), torch.ones(3, 4), torch.zeros(1, 1), torch.full((2, 2), 500.0)])
def test_strange_levels_have_finite_costs(levels: torch.Tensor) -> None:
    model = level_model(levels)
    assert 0 <= float(model.bits(levels)) < 40
    assert bool(model.slopes(levels).isfinite().all())
