"""A codec for sparse arrays: the positions of the non-zero elements, then their values.

Positions are coded as one bit for each element, with a probability that depends on the density of its row and its column, so
that pruned neurons and pruned inputs need almost no bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import constriction
import numpy as np

from mirabelle.codecs.codec import EstimatedCodec, Symbols
from mirabelle.codecs.counts import Counts, byte_counts
from mirabelle.codecs.histogram import Histogram, coded_length, decode_symbols, encode_in_parts, words
from mirabelle.codecs.varint import Reader, write_varints

_CLASSES = 8  # density classes of rows and of columns; class 0 is empty
_LEAST = 16  # bytes that positions take
_STEPS = 255  # probabilities are multiples of 1 / 256


class Sparse:
    """Codes the positions of non-zero elements by row and column density, and their values with another codec.

    The array is treated as a matrix whose rows are its first axis.

    Args:
        values: the codec for the values of the non-zero elements.
        histogram: the codec for the classes of rows and columns.

    Example:
        >>> codes = np.array([[0, 0, 3], [0, 0, -2]], dtype=np.int8)
        >>> codec = Sparse(Histogram())
        >>> codec.decode(codec.encode(codes), codes.shape, codes.dtype).tolist()
        [[0, 0, 3], [0, 0, -2]]
    """

    def __init__(self, values: EstimatedCodec, histogram: Histogram | None = None) -> None:
        self._values, self._histogram = values, histogram or Histogram()
        self.dtypes = values.dtypes
        self.exact = values.exact

    def encode(self, symbols: Symbols) -> bytes:
        if not symbols.size:
            return b""
        matrix = _matrix(symbols)
        # Compared as bits, so that a floating-point negative zero counts as non-zero.
        mask = matrix.view(f"u{matrix.dtype.itemsize}") != 0
        rows, columns = _classes(mask.mean(axis=1)), _classes(mask.mean(axis=0))
        head = [self._histogram.encode(rows), self._histogram.encode(columns)]
        encoder = constriction.stream.queue.RangeEncoder()
        table = []
        for members in _contexts(rows, columns):
            bits = mask[members].reshape(-1)
            table.append(_probability(int(bits.sum()), bits.size))
            if 0 < table[-1] <= _STEPS:
                encode_in_parts(encoder, bits, _bernoulli(table[-1]))
        positions = encoder.get_compressed().astype("<u4").tobytes()
        parts = [*head, write_varints(table), positions]
        values = self._values.encode(matrix[mask])
        return b"".join([write_varints([len(part)]) + part for part in parts]) + write_varints([int(mask.sum())]) + values

    def estimate(self, symbols: Symbols, counts: Counts) -> float:
        """About the length of `encode(symbols)`, from the counts of its bytes and of the zeros in its rows and columns."""
        matrix = _matrix(symbols)
        mask = matrix.view(f"u{matrix.dtype.itemsize}") != 0
        zeros = int(mask.size - np.count_nonzero(mask))
        left = counts.copy()
        left[:, 0] -= zeros
        values = self._values.estimate(symbols, left)
        if values + _LEAST > self._values.estimate(symbols, counts):
            return math.inf
        rows, columns = _classes(mask.mean(axis=1)), _classes(mask.mean(axis=0))
        heads = sum(coded_length(byte_counts(classes)[0], classes.dtype) for classes in (rows, columns))
        return values + heads + sum(_bits(mask[rows == kind], columns) for kind in range(1, _CLASSES)) / 8

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Symbols:
        if 0 in shape:
            return np.zeros(shape, dtype)
        matrix = _matrix(np.zeros(shape, dtype))
        reader = Reader(data)
        parts = [reader.take(reader.varint()) for _ in range(4)]
        classes = np.dtype(np.uint8)
        rows = self._histogram.decode(parts[0], (matrix.shape[0],), classes)
        columns = self._histogram.decode(parts[1], (matrix.shape[1],), classes)
        table = Reader(parts[2])
        decoder = constriction.stream.queue.RangeDecoder(words(parts[3]))
        mask = np.zeros(matrix.shape, bool)
        for members in _contexts(rows, columns):
            steps, count = table.varint(), int(members[0].size * members[1].size)
            if steps > _STEPS:
                mask[members] = True
            elif steps:
                mask[members] = decode_symbols(decoder, _bernoulli(steps), count).reshape(mask[members].shape) != 0
        count = reader.varint()
        if count != mask.sum():
            raise ValueError(f"{count} values for {mask.sum()} positions")
        matrix[mask] = self._values.decode(reader.rest(), (count,), dtype)
        return matrix.reshape(shape)


def _matrix(symbols: Symbols) -> Symbols:
    return np.ascontiguousarray(symbols).reshape(symbols.shape[0] if symbols.ndim > 1 else 1, -1)


def _classes(density: Symbols) -> Symbols:
    """The density class: 0 if empty, else 1 to 7 by powers of two: class 1 up to 1/64, class 7 above 1/2."""
    with np.errstate(divide="ignore"):
        octave = np.ceil(np.log2(density))
    return np.where(density > 0, np.clip(octave + _CLASSES - 1, 1, _CLASSES - 1), 0).astype(np.uint8)


def _contexts(rows: Symbols, columns: Symbols) -> Iterator[tuple[Symbols, Symbols]]:
    """The indices (rows, columns) of every block of one row class and one column class, except empty ones."""
    for row_class in range(1, _CLASSES):
        for column_class in range(1, _CLASSES):
            members = np.flatnonzero(rows == row_class), np.flatnonzero(columns == column_class)
            if members[0].size and members[1].size:
                yield members[0][:, None], members[1][None, :]


def _bits(mask: Symbols, columns: Symbols) -> float:
    """The bits of the positions in rows of one class, whose columns have these classes."""
    ones = np.bincount(columns, mask.sum(axis=0), _CLASSES)
    sizes = np.bincount(columns, minlength=_CLASSES) * len(mask)
    found = 0.0
    for one, size in zip(ones[1:], sizes[1:], strict=True):
        steps = _probability(int(one), int(size))
        if 0 < steps <= _STEPS:
            found -= one * np.log2(steps / (_STEPS + 1)) + (size - one) * np.log2(1 - steps / (_STEPS + 1))
    return found


def _probability(ones: int, size: int) -> int:
    """The share of ones among so many bits in steps of 1/256: 0 if there are none, 256 if all are ones, else 1 to 255."""
    if ones in (0, size):
        return 0 if ones == 0 else _STEPS + 1
    return int(np.clip(np.rint(ones / size * (_STEPS + 1)), 1, _STEPS))


def _bernoulli(steps: int) -> Any:
    return constriction.stream.model.Bernoulli(steps / (_STEPS + 1), perfect=False)
