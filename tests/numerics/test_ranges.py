"""Ranges with the smallest squared error, against a brute-force search over the values themselves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from mirabelle.numerics.ranges import least_error_range

Values = npt.NDArray[np.float64]
RANDOM = np.random.default_rng(0)
DRAWN = {
    "normal": RANDOM.normal(size=20_000),
    "heavy tails": RANDOM.standard_t(2.5, size=20_000),
    "behind a ReLU": np.maximum(RANDOM.laplace(size=20_000), 0),
    "negative": -RANDOM.exponential(size=20_000),
    "far outlier": np.append(RANDOM.normal(size=20_000), 200.0),
}


def error(values: Values, low: float, high: float, levels: int) -> float:
    """The squared error of rounding to levels over a range, written out."""
    scale = (high - low) / (levels - 1)
    zero = np.round(-low / scale)
    codes = np.clip(np.round(values / scale) + zero, 0, levels - 1)
    return float(np.square(values - (codes - zero) * scale).sum())


@pytest.mark.parametrize("levels", [16, 256])
@pytest.mark.parametrize("kind", DRAWN)
def test_the_range_is_about_as_good_as_the_best_that_a_search_finds(kind: str, levels: int) -> None:
    values = DRAWN[kind]
    counts, edges = np.histogram(values, 2048)
    low, high = least_error_range(counts.astype(float), edges, levels)
    assert min(values.min(), 0) - 1e-9 <= low <= 0 <= high <= max(values.max(), 0) + 1e-9
    parts = np.linspace(0.02, 1, 50)
    lows, highs = min(values.min(), 0.0) * parts, max(values.max(), 0.0) * parts
    best = min(error(values, a, b, levels) for a in np.unique(lows) for b in np.unique(highs) if b > a)
    assert error(values, low, high, levels) <= 1.05 * best  # bins and fractions differ
    assert error(values, low, high, levels) <= error(values, min(values.min(), 0), max(values.max(), 0), levels) * 1.001


def test_a_single_value_keeps_its_range() -> None:
    assert least_error_range(np.array([0.0, 5.0]), np.array([0.0, 1.0, 2.0])) == pytest.approx((0.0, 2.0), rel=0.3)
