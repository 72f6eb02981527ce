"""Integers of 2 or 4 bits, several of which ONNX stores in a byte, as integers of 8 bits, and the other way round."""

from __future__ import annotations

import math

import numpy as np

from mirabelle.codecs.codec import Symbols


def widened(raw: bytes | memoryview, bits: int, shape: tuple[int, ...], *, signed: bool) -> Symbols:
    """The integers, int8 or uint8, from bytes in which the first has the lowest bits, without those that fill the last byte.

    Example:
        >>> widened(b"\\x2f\\x07", 4, (3,), signed=True).tolist()
        [-1, 2, 7]
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    stored = (np.frombuffer(raw, np.uint8)[:, None] >> shifts) & ((1 << bits) - 1)
    found = stored.reshape(-1)[: math.prod(shape)].reshape(shape)
    return (found << 8 - bits).view(np.int8) >> 8 - bits if signed else found


def narrowed(integers: Symbols, bits: int) -> bytes:
    """The bytes of `widened`; zeros fill the last one.

    Raises:
        ValueError: if an integer does not fit.
    """
    signed = integers.dtype.kind == "i"
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    if integers.size and not low <= int(integers.min()) <= int(integers.max()) <= high:
        raise ValueError(f"an integer has more than {bits} bits")
    each = 8 // bits
    filled = np.zeros(-(-integers.size // each) * each, np.uint8)
    filled[: integers.size] = integers.reshape(-1).view(np.uint8) & ((1 << bits) - 1)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return bytes(np.bitwise_or.reduce(filled.reshape(-1, each) << shifts, axis=1, initial=0))
