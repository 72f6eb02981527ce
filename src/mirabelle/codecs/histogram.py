"""Entropy coding with the histogram of the symbols: close to Σ −log₂ p(symbol) bits, plus the table of counts."""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np

from mirabelle.codecs.codec import Symbols
from mirabelle.codecs.counts import Counts, byte_counts
from mirabelle.codecs.counts_table import counts_in_table, counts_table, lengths_with_table, plain_counts, read_counts
from mirabelle.codecs.varint import Reader, write_varints

_MOST = 1 << 8
_AT_ONCE = 1 << 18  # symbols that become 32-bit integers for the coder at a time


class Histogram:
    """Range coding of small integers with their histogram as a static model.

    The encoded data are: the lowest symbol, the number of symbols from lowest to highest, their counts (`counts_table`), and
    the 32-bit words of the range coder. If there is only one distinct symbol, there are neither counts nor words.

    Args:
        version: of the file; in version 0 all counts are varints, and only read.

    Example:
        >>> codes = np.array([0, 0, 1, 0, -1, 0], dtype=np.int8)
        >>> data = Histogram().encode(codes)
        >>> Histogram().decode(data, codes.shape, codes.dtype).tolist()
        [0, 0, 1, 0, -1, 0]

    Source: range coding by Martin 1979; Bamler 2022, arXiv:2201.01741 (constriction).
    """

    dtypes: tuple[str, ...] = ("int8", "uint8")
    exact: bool = True

    def __init__(self, version: int = 1) -> None:
        self._version = version

    def encode(self, symbols: Symbols) -> bytes:
        return encoded(symbols, byte_counts(symbols)[0])

    def estimate(self, symbols: Symbols, counts: Counts) -> float:
        """About the length of `encode(symbols)`, from the counts of its bytes."""
        return coded_length(counts[0], symbols.dtype)

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Symbols:
        size = int(np.prod(shape))
        if not size:
            return np.zeros(shape, dtype)
        reader = Reader(data)
        low, kinds = lowest_and_kinds(reader, dtype)
        if not self._version:
            counts = plain_counts(reader, kinds)
        if kinds == 1:
            return np.full(shape, low, dtype)
        if self._version:
            counts = read_counts(reader, kinds)
        decoder = constriction.stream.queue.RangeDecoder(words(reader.rest()))
        symbols, model = np.empty(size, dtype), _model(counts)
        for start in range(0, size, _AT_ONCE):
            part = symbols[start : start + _AT_ONCE]
            part[:] = decode_symbols(decoder, model, part.size) + low
        return symbols.reshape(shape)


def encoded(symbols: Symbols, counts: Counts) -> bytes:
    """Symbols of 8 bits coded with their histogram, which is in the counts of their bytes, (256,)."""
    if not symbols.size:
        return b""
    low, table, head = front_of(counts, symbols.dtype)
    if len(table) == 1:
        return head
    table, data = counts_table(table)
    encoder = constriction.stream.queue.RangeEncoder()
    encode_in_parts(encoder, symbols.reshape(-1), _model(table), low)
    stream: bytes = encoder.get_compressed().astype("<u4", copy=False).tobytes()
    return head + data + stream


def encode_in_parts(encoder: Any, symbols: Symbols, model: Any, low: int = 0) -> None:
    """Encode a long row of small integers, minus `low`, without a 32-bit copy of all of it; the words are the same."""
    for start in range(0, symbols.size, _AT_ONCE):
        encoder.encode(symbols[start : start + _AT_ONCE].astype(np.int32) - low, model)


def decode_symbols(decoder: Any, model: Any, count: int) -> Symbols:
    """So many symbols of a range coder's stream.

    Raises:
        ValueError: if the stream is none of the model.
    """
    try:
        symbols: Symbols = decoder.decode(model, count)
    except AssertionError as error:  # which the library raises
        raise ValueError("the stream of a range coder is damaged") from error
    return symbols


def coded_length(counts: Counts, dtype: np.dtype[Any]) -> float:
    """About the bytes to which a histogram codes symbols of 8 bits that occur so often, (256,)."""
    if not counts.any():
        return 0.0
    _, exact, head = front_of(counts, dtype)
    if len(exact) == 1:
        return len(head)
    return len(head) + sum(lengths_with_table(exact, counts_in_table(exact)))


def lowest_and_kinds(reader: Reader, dtype: np.dtype[Any]) -> tuple[int, int]:
    """(the lowest symbol, how many there are from it to the highest), from the front of coded data.

    Raises:
        ValueError: if the type has no such symbols.
    """
    low, kinds = _unzigzag(reader.varint()), reader.varint()
    limits = np.iinfo(dtype)
    if not 0 < kinds <= _MOST or low < limits.min or low + kinds - 1 > limits.max:
        raise ValueError(f"the number of distinct symbols, {kinds}, is impossible")
    return low, kinds


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


def front_of(counts: Counts, dtype: np.dtype[Any]) -> tuple[int, Symbols, bytes]:
    """(lowest symbol, counts of it and all up to the highest one, front of coded data), from the counts of bytes."""
    ordered = np.roll(counts, 128) if dtype.kind == "i" else counts
    present = np.flatnonzero(ordered)
    low, high = int(present[0]), int(present[-1])
    lowest, table = low - 128 * (dtype.kind == "i"), ordered[low : high + 1]
    return lowest, table, write_varints([_zigzag(lowest), len(table)])


def _zigzag(value: int) -> int:
    return 2 * value if value >= 0 else -2 * value - 1


def _unzigzag(value: int) -> int:
    return value // 2 if value % 2 == 0 else -(value + 1) // 2
