"""Byte planes: all lowest bytes of an array, then all second bytes, and so on, each coded with its own histogram."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from mirabelle.codecs.codec import Codec, Symbols
from mirabelle.codecs.counts import Counts, byte_counts
from mirabelle.codecs.histogram import Histogram, coded_length, encoded
from mirabelle.codecs.interleaved import MUCH_FASTER, Interleaved, interleaved, interleaved_length
from mirabelle.codecs.varint import Reader, write_varints

_RAW, _CODED, _INTERLEAVED = 0, 1, 2
_NEAR = 8  # bytes; a plane is coded to see whether it gets smaller, unless its counts say that it does not by this much


class Planes:
    """Codes floats and wide integers as byte planes; a plane that does not get smaller is stored uncompressed.

    Long planes are coded as `Interleaved` does.

    Args:
        histogram: the codec of a plane.

    Example:
        >>> scales = np.array([0.5, 0.25, 0.5], dtype=np.float32)
        >>> Planes().decode(Planes().encode(scales), (3,), scales.dtype).tolist()
        [0.5, 0.25, 0.5]
    """

    dtypes: tuple[str, ...] = ("float32", "float64", "float16", "int16", "int32", "int64", "uint16", "uint32", "uint64")
    exact: bool = True

    def __init__(self, histogram: Histogram | None = None) -> None:
        self._histogram = histogram or Histogram()

    def encode(self, symbols: Symbols) -> bytes:
        little = np.ascontiguousarray(symbols.reshape(-1)).astype(symbols.dtype.newbyteorder("<"), copy=False)
        planes = little.view(np.uint8).reshape(-1, symbols.dtype.itemsize).T
        out = io.BytesIO()
        for plane, counts in zip(planes, byte_counts(symbols), strict=True):
            length = coded_length(counts, plane.dtype)
            likely, long = length < plane.size + _NEAR, interleaved_length(counts, plane.dtype) <= MUCH_FASTER * length
            kind, encode = (_INTERLEAVED, interleaved) if long else (_CODED, encoded)
            body = encode(plane, counts) if likely else b""
            if not likely or len(body) >= plane.size:
                kind, body = _RAW, plane.tobytes()
            out.write(write_varints([kind, len(body)]))
            out.write(body)
        return out.getvalue()

    def estimate(self, symbols: Symbols, counts: Counts) -> float:
        """About the length of `encode(symbols)`, from the counts of its bytes."""
        del symbols  # some of which may not be counted
        size, each = int(counts[0].sum()), np.dtype(np.uint8)
        return sum(min(coded_length(plane, each), size) + len(write_varints([0, size])) for plane in counts)

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Symbols:
        size, reader = int(np.prod(shape)), Reader(data)
        planes = np.empty((size, dtype.itemsize), np.uint8)
        codecs: dict[int, Codec] = {_CODED: self._histogram, _INTERLEAVED: Interleaved()}
        for place in range(dtype.itemsize):
            kind, length = reader.varint(), reader.varint()
            body = reader.take(length)
            if kind in codecs:
                planes[:, place] = codecs[kind].decode(body, (size,), np.dtype(np.uint8))
            elif kind == _RAW and length == size:
                planes[:, place] = np.frombuffer(body, np.uint8)
            else:
                raise ValueError("a plane has the wrong length")
        little = planes.reshape(-1).view(dtype.newbyteorder("<"))
        return little.astype(dtype, copy=False).reshape(shape)
