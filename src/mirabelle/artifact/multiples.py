"""Floats that are multiples of one step, rounded to bfloat16: values and biases of a training with learned steps."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

_LOW = 0xFFFF  # the bits of a float32 that bfloat16 lacks
MOST_STEPS = 1 << 15  # the largest multiple
_DIVISORS = 64  # the smallest magnitude may be 1 to 64 steps
_MANTISSA = 23
_MOST_BITS = 14.0  # about those of a number, at the mean; as elements they take 13 to 16


def multiples_of(step: float, integers: npt.NDArray[np.int64]) -> bytes:
    """float32(n · step), rounded to the nearest bfloat16, ties to even, as the bytes of float32.

    Example:
        >>> np.frombuffer(multiples_of(0.25, np.array([-1, 0, 3])), np.float32).tolist()
        [-0.25, 0.0, 0.75]
    """
    with np.errstate(over="ignore", invalid="ignore"):
        products = (integers.astype(np.float32) * np.float32(step)).astype("<f4")
    bits = products.view("<u4").astype(np.uint64)
    return bytes(((bits + 0x7FFF + (bits >> 16 & 1)) & (0xFFFFFFFF - _LOW)).astype("<u4").tobytes())


def step_of(raw: bytes) -> tuple[float, npt.NDArray[np.int64]] | None:
    """(step, integers) that `multiples_of` makes these float32 numbers of, with a step of few digits; None if there is none."""
    values = np.frombuffer(raw, "<f4").astype(np.float64)
    bits = np.frombuffer(raw, "<u4")
    others = np.abs(values[values != 0])
    if not len(others) or not np.isfinite(values).all() or (bits & _LOW).any() or (bits == 1 << 31).any():
        return None
    for divisor in range(1, _DIVISORS + 1):
        if others.max() * divisor > MOST_STEPS * others.min():
            break
        integers = np.rint(values / (others.min() / divisor)).astype(np.int64)
        counts = np.abs(integers[integers != 0])
        if (2 * np.log2(1 + counts) + 1).mean() > _MOST_BITS:
            break
        half = 2.0 ** (np.floor(np.log2(others)) - 8)  # half of the last bit of a bfloat16
        low, high = ((others - half) / counts).max(), ((others + half) / counts).min()
        step = _short(low, high) if low <= high else None  # equal: a product lies between two bfloat16
        if step is not None and multiples_of(step, integers) == raw:
            return step, integers
    return None


def _short(low: float, high: float) -> float | None:
    """The number from one to another that has the fewest bits."""
    exponent = math.floor(math.log2(high))
    for bits in range(_MANTISSA + 1):
        unit = 2.0 ** (exponent - bits)
        step = math.floor((low + high) / 2 / unit + 0.5) * unit
        if low <= step <= high:
            return step
    return None
