"""Entropy coding with the histogram of the symbols: close to Σ −log₂ p(symbol) bits, plus the table of counts."""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np

from mirabelle.artifact.codecs.codec import Symbols
from mirabelle.artifact.codecs.varint import Reader, write_varints

_TOTAL = 1 << 12  # counts are rescaled to this sum; the loss is below 0.1 % of the bits
_MOST = 1 << 16


class Histogram:
    """Range coding of small integers with their histogram as a static model.

    The encoded data are: the lowest symbol, the number of symbols from lowest to highest, a rescaled count for each, and the
    32-bit words of the range coder. If there is only one distinct symbol, there are no words.

    Example:
        >>> codes = np.array([0, 0, 1, 0, -1, 0], dtype=np.int8)
        >>> data = Histogram().encode(codes)
        >>> Histogram().decode(data, codes.shape, codes.dtype).tolist()
        [0, 0, 1, 0, -1, 0]

    Source: range coding by Martin 1979; Bamler 2022, arXiv:2201.01741 (constriction).
    """

    dtypes: tuple[str, ...] = ("int8", "uint8")

    def encode(self, symbols: Symbols) -> bytes:
        flat = symbols.reshape(-1).astype(np.int32)
        if not flat.size:
            return b""
        low = int(flat.min())
        counts = _rescaled(np.bincount(flat - low))
        head = write_varints([_zigzag(low), len(counts), *counts])
        if len(counts) == 1:
            return head
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(flat - low, _model(counts))
        stream: bytes = encoder.get_compressed().astype("<u4").tobytes()
        return head + stream

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Symbols:
        size = int(np.prod(shape))
        if not size:
            return np.zeros(shape, dtype)
        reader = Reader(data)
        low, kinds = _unzigzag(reader.varint()), reader.varint()
        if not 0 < kinds <= min(_MOST, reader.left):
            raise ValueError(f"the number of distinct symbols, {kinds}, is impossible")
        counts = np.array([reader.varint() for _ in range(kinds)])
        limits = np.iinfo(dtype)
        if low < limits.min or low + kinds - 1 > limits.max or not 0 < counts.sum() <= 2 * _TOTAL + kinds:
            raise ValueError("the table of counts is impossible")
        if kinds == 1:
            return np.full(shape, low, dtype)
        decoder = constriction.stream.queue.RangeDecoder(words(reader.rest()))
        symbols: Symbols = decoder.decode(_model(counts), size)
        return (symbols + low).astype(dtype).reshape(shape)


def words(data: bytes) -> Symbols:
    """The 32-bit words of a range coder's stream.

    Raises:
        ValueError: if the length is not a multiple of four bytes.
    """
    if len(data) % 4:
        raise ValueError("the length of a range coder's stream is not a multiple of four bytes")
    return np.frombuffer(data, "<u4").astype(np.uint32)


def _model(counts: Symbols) -> Any:
    return constriction.stream.model.Categorical(counts.astype(np.float32) / np.float32(counts.sum()), perfect=False)


def _rescaled(counts: Symbols) -> Symbols:
    """Counts rescaled to a sum of about `_TOTAL`, with at least 1 for every symbol that occurs."""
    total = counts.sum()
    if total <= _TOTAL:
        return counts
    return np.where(counts > 0, np.maximum(1, np.rint(counts * (_TOTAL / total))), 0).astype(np.int64)


def _zigzag(value: int) -> int:
    return 2 * value if value >= 0 else -2 * value - 1


def _unzigzag(value: int) -> int:
    return value // 2 if value % 2 == 0 else -(value + 1) // 2
