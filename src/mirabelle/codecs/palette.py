"""A codec for floats of which few are distinct: a table of them, and their places in it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mirabelle.codecs.codec import EstimatedCodec, Symbols
from mirabelle.codecs.contexts import Contexts
from mirabelle.codecs.counts import Counts
from mirabelle.codecs.histogram import Histogram
from mirabelle.codecs.mixing import Allowance
from mirabelle.codecs.shortest import shortest
from mirabelle.codecs.sparse import Sparse
from mirabelle.codecs.varint import Reader, write_varints

_MOST = 256
_SAMPLE = 4096  # elements, of which at most 256 may be distinct, before all are looked at
_LARGEST = 1 << 22  # elements


class Palette:
    """Codes arrays with at most 256 distinct values as a table of these and one byte for each element, coded further.

    The number of values, how many bytes of each are stored, the highest ones, and the codec of the places, 0, 1 or 2 for
    `Histogram`, `Sparse` or `Contexts`, come first; then the values in ascending order of their bits, so that 0.0 is the first;
    then the coded places. A 0 alone comes first if more values are distinct; then the elements follow as they are.

    Example:
        >>> scales = np.array([0.5, 0.0, 0.5, -1.25], dtype=np.float32)
        >>> Palette().decode(Palette().encode(scales), (4,), scales.dtype).tolist()
        [0.5, 0.0, 0.5, -1.25]

    Args:
        allowance: how many bits the file may still have (`Contexts`).
        histogram: the codec of the places, or of their values.
    """

    dtypes: tuple[str, ...] = ("float32", "float64", "float16")
    exact: bool = False

    def __init__(self, allowance: Allowance | None = None, histogram: Histogram | None = None) -> None:
        histogram = histogram or Histogram()
        self._codecs: tuple[EstimatedCodec, ...] = (histogram, Sparse(histogram, histogram), Contexts(allowance))

    def encode(self, symbols: Symbols) -> bytes:
        if not symbols.size:
            return b""
        table, places = np.unique(_bits(symbols), return_inverse=True)
        if len(table) > _MOST:
            return write_varints([0]) + _bits(symbols).tobytes()
        size = symbols.dtype.itemsize
        columns = table.view(np.uint8).reshape(-1, size)  # little-endian: the lowest bytes come first
        kept = size - int(columns.any(axis=0).argmax()) if columns.any() else 0
        codes = places.astype(np.uint8).reshape(symbols.shape)
        body, kind = shortest(codes, self._codecs)
        return write_varints([len(table), kept, kind]) + columns[:, size - kept :].tobytes() + body

    def estimate(self, symbols: Symbols, counts: Counts) -> float:
        """A lower bound of the length of `encode(symbols)`; infinite if too many values are distinct."""
        del counts
        bits = _bits(symbols)
        if bits.size > _LARGEST or len(np.unique(bits[:_SAMPLE])) > _MOST or len(np.unique(bits)) > _MOST:
            return math.inf
        return 0.0

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Symbols:
        if not math.prod(shape):
            return np.zeros(shape, dtype)
        reader, size = Reader(data), dtype.itemsize
        count = reader.varint()
        if not count:
            return _plain(reader.rest(), shape, dtype)
        kept, kind = reader.varint(), reader.varint()
        if count > _MOST or kept > size or kind >= len(self._codecs):
            raise ValueError("the head of a table of values is impossible")
        columns = np.zeros((count, size), np.uint8)
        columns[:, size - kept :] = np.frombuffer(reader.take(count * kept), np.uint8).reshape(count, kept)
        places = self._codecs[kind].decode(reader.rest(), shape, np.dtype(np.uint8))
        if int(places.max()) >= count:
            raise ValueError(f"a place is beyond the table of {count} values")
        table = columns.reshape(-1).view(dtype.newbyteorder("<")).astype(dtype)
        return table[places]


def _plain(data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Symbols:
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError("the elements do not have the size of the array")
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(shape)


def _bits(symbols: Symbols) -> Symbols:
    """The elements as unsigned integers of their bits, little-endian, in one row."""
    little = np.ascontiguousarray(symbols.reshape(-1)).astype(symbols.dtype.newbyteorder("<"), copy=False)
    return little.view(f"<u{symbols.dtype.itemsize}")
