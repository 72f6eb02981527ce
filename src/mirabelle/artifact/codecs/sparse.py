"""A codec for sparse arrays: the positions of the non-zero elements, then their values.

Positions are coded as one bit for each element, with a probability that depends on the density of its row and its column, so
that pruned neurons and pruned inputs need almost no bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import constriction
import numpy as np

from mirabelle.artifact.codecs.codec import Codec, Symbols
from mirabelle.artifact.codecs.histogram import Histogram, words
from mirabelle.artifact.codecs.varint import Reader, write_varints

_CLASSES = 8  # density classes of rows and of columns; class 0 is empty
_STEPS = 255  # probabilities are multiples of 1 / 256


class Sparse:
    """Codes the positions of non-zero elements by row and column density, and their values with another codec.

    The array is treated as a matrix whose rows are its first axis.

    Args:
        values: the codec for the values of the non-zero elements.

    Example:
        >>> codes = np.array([[0, 0, 3], [0, 0, -2]], dtype=np.int8)
        >>> codec = Sparse(Histogram())
        >>> codec.decode(codec.encode(codes), codes.shape, codes.dtype).tolist()
        [[0, 0, 3], [0, 0, -2]]
    """

    def __init__(self, values: Codec) -> None:
        self._values = values
        self.dtypes = values.dtypes

    def encode(self, symbols: Symbols) -> bytes:
        if not symbols.size:
            return b""
        matrix = _matrix(symbols)
        # Compared as bits, so that a floating-point negative zero counts as non-zero.
        mask = matrix.view(f"u{matrix.dtype.itemsize}") != 0
        rows, columns = _classes(mask.mean(axis=1)), _classes(mask.mean(axis=0))
        head = [Histogram().encode(rows), Histogram().encode(columns)]
        encoder = constriction.stream.queue.RangeEncoder()
        table = []
        for members in _contexts(rows, columns):
            bits = mask[members].reshape(-1).astype(np.int32)
            table.append(_probability(bits))
            if 0 < table[-1] <= _STEPS:
                encoder.encode(bits, _bernoulli(table[-1]))
        positions = encoder.get_compressed().astype("<u4").tobytes()
        parts = [*head, write_varints(table), positions]
        values = self._values.encode(matrix[mask])
        return b"".join([write_varints([len(part)]) + part for part in parts]) + write_varints([int(mask.sum())]) + values

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Symbols:
        if 0 in shape:
            return np.zeros(shape, dtype)
        matrix = _matrix(np.zeros(shape, dtype))
        reader = Reader(data)
        parts = [reader.take(reader.varint()) for _ in range(4)]
        classes = np.dtype(np.uint8)
        rows = Histogram().decode(parts[0], (matrix.shape[0],), classes)
        columns = Histogram().decode(parts[1], (matrix.shape[1],), classes)
        table = Reader(parts[2])
        decoder = constriction.stream.queue.RangeDecoder(words(parts[3]))
        mask = np.zeros(matrix.shape, bool)
        for members in _contexts(rows, columns):
            steps, count = table.varint(), int(members[0].size * members[1].size)
            if steps > _STEPS:
                mask[members] = True
            elif steps:
                mask[members] = decoder.decode(_bernoulli(steps), count).reshape(mask[members].shape) != 0
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


def _probability(bits: Symbols) -> int:
    """The share of ones in steps of 1/256: 0 if there are none, 256 if all are ones, else 1 to 255."""
    ones = int(bits.sum())
    if ones in (0, bits.size):
        return 0 if ones == 0 else _STEPS + 1
    return int(np.clip(np.rint(ones / bits.size * (_STEPS + 1)), 1, _STEPS))


def _bernoulli(steps: int) -> Any:
    return constriction.stream.model.Bernoulli(steps / (_STEPS + 1), perfect=False)
