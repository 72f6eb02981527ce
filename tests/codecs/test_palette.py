"""Few distinct floats: a table and places."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mirabelle.codecs import Palette, Planes
from mirabelle.codecs.counts import byte_counts


def test_multiples_of_a_step_take_little_more_than_their_places() -> None:
    draw = np.random.default_rng(0)
    levels = draw.integers(-3, 4, 300) * (draw.random(300) < 0.5)
    values = (levels * np.float32(0.0078125)).astype(np.float32)
    assert len(Palette().encode(values)) < min(104, len(Planes().encode(values)))
    shares = np.unique(levels, return_counts=True)[1] / 300
    assert len(Palette().encode(values)) < 1.15 * 300 * float(-(shares * np.log2(shares)).sum()) / 8 + 7 * 2 + 6


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_bit_of_a_value_comes_back(dtype: str) -> None:
    values = np.array([0.0, -0.0, np.nan, np.inf, 1 / 3, -1e-7, 5e-324, 0.0], dtype)
    assert Palette().decode(Palette().encode(values), values.shape, values.dtype).tobytes() == values.tobytes()


def test_only_the_bytes_that_are_not_zero_are_stored() -> None:
    coarse, fine = np.float32(0.5), np.float32(1 / 3)
    short, long = (len(Palette().encode(np.array([0, value], np.float32))) for value in (coarse, fine))
    assert short + 2 * 3 == long


def test_many_distinct_values_are_left_to_other_codecs() -> None:
    values = np.arange(1000, dtype=np.float32)
    assert Palette().estimate(values, byte_counts(values)) == math.inf
    assert np.array_equal(Palette().decode(Palette().encode(values), values.shape, values.dtype), values)


@pytest.mark.parametrize("data", [b"\xff\x02\x02\x00", b"\x01\x05\x00", b"\x01\x01\x09\x00", b"\x00\x01", b"\x02\x01\x00\x3f"])
def test_damaged_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Palette().decode(data, (3,), np.dtype(np.float32))
