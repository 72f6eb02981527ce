"""Means and standard deviations, rounded to few digits; training uses the rounded values that are stored with the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError

_DIGITS = 6


def settled(
    mean: Sequence[float], deviation: Sequence[float], count: int, what: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Check and round means and standard deviations; an empty mean becomes 0, an empty deviation 1.

    A deviation keeps six significant digits. A mean keeps the same decimal places, so that its error is at most 10⁻⁵
    deviations, however large it is. Rounding twice changes nothing.

    Args:
        mean: one number for each channel or column, or empty.
        deviation: one number for each channel or column, or empty.
        count: number of channels or columns.
        what: "channels" or "columns", for messages.

    Raises:
        UserError: E110 if there are not `count` numbers, one is not finite, or a deviation is not positive.

    Example:
        >>> settled((1234567.891234,), (0.123456789,), 1, "columns")
        ((1234567.891234,), (0.123457,))
        >>> settled((), (), 2, "channels")
        ((0.0, 0.0), (1.0, 1.0))
    """
    for name, values in (("mean", mean), ("deviation", deviation)):
        if values and len(values) != count:
            raise UserError(
                "E110", f"{name} needs one number for each of {count} {what}; got {len(values)}", f"give {count} numbers"
            )
        if not all(math.isfinite(value) and (name == "mean" or value > 0) for value in values):
            rule = "finite" if name == "mean" else "finite and above 0"
            raise UserError("E110", f"{name} must be {rule}; got {list(values)}", "give other numbers")
    deviations = [float(f"{value:.{_DIGITS}g}") for value in deviation or [1.0] * count]
    places = [_DIGITS - 1 - math.floor(math.log10(value)) for value in deviations]
    means = [round(float(value), place) for value, place in zip(mean or [0.0] * count, places, strict=True)]
    return tuple(means), tuple(deviations)


def mean_and_deviation_of_parts(parts: Iterable[npt.NDArray[Any]]) -> tuple[list[float], list[float]]:
    """(means, standard deviations) of each channel, in float64, of values that come in parts, each (..., channels).

    They are those of all values together, up to the rounding of sums. Without any part, both are empty.

    Example:
        >>> mean_and_deviation_of_parts([np.array([[1.0], [1.0]]), np.array([[4.0], [2.0]])])[0]
        [2.0]

    Source: Chan, Golub, LeVeque 1983, doi:10.1080/00031305.1983.10483115.
    """
    count, means, squares = 0, np.zeros(0), np.zeros(0)
    for part in parts:
        values = part.reshape(-1, part.shape[-1])
        own = values.mean(axis=0, dtype=np.float64)
        spread = np.array([np.square(values[:, k] - own[k]).sum() for k in range(len(own))])
        if not count:
            means, squares = np.zeros_like(own), np.zeros_like(own)
        gap, total = own - means, count + len(values)
        means = means + gap * len(values) / total
        squares = squares + spread + gap**2 * count * len(values) / total
        count = total
    return means.tolist(), np.sqrt(squares / max(count, 1)).tolist()


def to_data(mean: Sequence[float], deviation: Sequence[float]) -> dict[str, list[float]]:
    """The entries to store: means of 0 and deviations of 1 are defaults and left out, integers are written without a point."""
    data = {}
    if any(mean):
        data["mean"] = [_short(value) for value in mean]
    if any(value != 1 for value in deviation):
        data["deviation"] = [_short(value) for value in deviation]
    return data


def _short(value: float) -> float:
    return int(value) if value.is_integer() else value
