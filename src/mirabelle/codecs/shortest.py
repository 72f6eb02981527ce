"""The shortest of several codings of an array, and how long the levels of a quantized matrix become in a file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mirabelle.codecs.codec import EstimatedCodec, Symbols
from mirabelle.codecs.contexts import Contexts
from mirabelle.codecs.counts import byte_counts
from mirabelle.codecs.histogram import Histogram
from mirabelle.codecs.sparse import Sparse

FEW = 1 << 12  # weights of a layer that a file stores as multiples of their step, and not as codes of a codebook
_CLOSE = 32  # bytes by which an estimate may be wrong
_ENTRY = 2.0  # bytes of a tensor in the head of a file, and of the step of its values


def shortest(symbols: Symbols, codecs: Sequence[EstimatedCodec]) -> tuple[bytes, int]:
    """The shortest result, and the position of its codec; codecs whose estimates are far from the best are not tried."""
    counts = byte_counts(symbols)
    lengths = [codec.estimate(symbols, counts) for codec in codecs]
    most = _CLOSE + min(length for codec, length in zip(codecs, lengths, strict=True) if codec.exact)
    bodies = [(codec.encode(symbols), k) for k, codec in enumerate(codecs) if lengths[k] <= most]
    return min(bodies, key=lambda one: len(one[0]))


def length_of_levels(levels: Symbols) -> float:
    """About how many bytes the levels of a quantized matrix take in a file.

    They are coded: up to 4,096 as they are, more as codes of a codebook, whose values k count 2 · log₂(1 + |k|) + 1 bits each.
    The tensor counts 2 bytes.

    Args:
        levels: integers of any dtype, within ±127, (rows, columns).

    Example:
        >>> length_of_levels(np.zeros((100, 100))) < 8
        True
    """
    if not levels.size:
        return 0.0
    histogram = Histogram()
    codecs = (histogram, Sparse(histogram, histogram), Contexts())
    if levels.size <= FEW:
        return _ENTRY + len(shortest(levels.astype(np.int8), codecs)[0])
    used = np.unique(levels[levels != 0])
    codes = np.where(levels == 0, 0, np.searchsorted(used, levels) + 1).astype(np.uint8)
    body, _ = shortest(codes, codecs)
    return _ENTRY + float((2 * np.log2(1 + np.abs(used)) + 1).sum()) / 8 + len(body)
