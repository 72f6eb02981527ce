"""How often each byte occurs in an array; the lengths of coded arrays follow from that without coding them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mirabelle.codecs.codec import Symbols

Counts = npt.NDArray[np.int64]
_AT_ONCE = 1 << 18
_PAIRS = 1 << 16  # values of two bytes


def byte_counts(symbols: Symbols) -> Counts:
    """(bytes of an element, 256): how often each value occurs as the lowest byte of an element, as the second, and so on.

    Example:
        >>> byte_counts(np.array([1, 256], dtype=np.uint16))[:, :2].tolist()
        [[1, 1], [1, 1]]
    """
    size = symbols.dtype.itemsize
    little = np.ascontiguousarray(symbols.reshape(-1)).astype(symbols.dtype.newbyteorder("<"), copy=False)
    if size == 1:
        return _counts(little.view(np.uint8), 256)[None]
    pairs = [_counts(column, _PAIRS).reshape(256, 256) for column in little.view("<u2").reshape(-1, size // 2).T]
    return np.concatenate([[pair.sum(axis=0), pair.sum(axis=1)] for pair in pairs])


def _counts(column: Symbols, kinds: int) -> Counts:
    found = np.zeros(kinds, np.int64)
    for start in range(0, column.size, _AT_ONCE):
        found += np.bincount(column[start : start + _AT_ONCE], minlength=kinds)
    return found
