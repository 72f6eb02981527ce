"""A codec for small sparse matrices of small integers: each bit with a probability mixed from what is around it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mirabelle.codecs.codec import Symbols
from mirabelle.codecs.counts import Counts
from mirabelle.codecs.histogram import coded_length
from mirabelle.codecs.mixing import Allowance, Coder, Mixed, MixedDecoder, MixedEncoder
from mirabelle.codecs.varint import Reader, write_varints

_MOST = 1 << 19  # bits; each takes about five microseconds
_LARGEST, _LEAST = 1 << 23, 0.4  # elements; share of the length with a histogram that contexts may come down to
_SMALL, _DIVERSE = 1 << 8, 0.35  # elements; bytes of one with a histogram
_STRIDES = 64  # of the flags of columns: such as the width of an image
_UNARY = 12  # magnitudes up to here have contexts of their own
_NEAR = 3  # the same for the contexts of a row


class Contexts:
    """Codes integers of 8 bits one by one, in three parts of one stream of bits (`mixing`):

    1. which rows and which columns of the matrix have an element that is not 0; the first axis of an array gives the rows;
    2. for each element of these, column by column, whether it is 0, from the elements before it in its row and its column,
       the shares of others among these, and the two elements to the left and the one above;
    3. its value. Of unsigned numbers that is value − 1, bit by bit, from the highest; of signed ones the magnitude − 1 in
       unary, and the sign.

    Two numbers stand before the stream: the largest magnitude, and the stride of columns, such as the width of an image, whose
    flags resemble each other.

    Example:
        >>> codes = np.array([[0, 0, 3], [0, 0, -2]], dtype=np.int8)
        >>> Contexts().decode(Contexts().encode(codes), codes.shape, codes.dtype).tolist()
        [[0, 0, 3], [0, 0, -2]]

    Args:
        allowance: how many bits the file may still have; by default each array has its own.

    Source: context mixing, Mahoney 2005, Florida Tech. CS-2005-16; contexts of a weight: Wiedemann et al. 2020,
    arXiv:1907.11900.
    """

    dtypes: tuple[str, ...] = ("int8", "uint8")
    exact: bool = False

    def __init__(self, allowance: Allowance | None = None) -> None:
        self._allowance = allowance

    def encode(self, symbols: Symbols) -> bytes:
        matrix = _matrix(symbols)
        if not matrix.size:
            return b""
        most = int(np.abs(matrix.astype(np.int16)).max())
        stride = _stride(np.asarray(matrix.any(axis=0)))
        coder = MixedEncoder(self._allowance)
        _Walk(coder, matrix.shape, most, stride, signed=matrix.dtype.kind == "i").run(matrix.tolist())
        return write_varints([most, stride]) + coder.finished()

    def estimate(self, symbols: Symbols, counts: Counts) -> float:
        """A lower bound of the length of `encode(symbols)`.

        Infinite if it would take more than about three seconds, or if the elements are so diverse that contexts gain little.
        """
        alone = coded_length(counts[0], symbols.dtype)
        if not symbols.size or symbols.size > _LARGEST or (symbols.size > _SMALL and alone > _DIVERSE * symbols.size):
            return math.inf
        most = _MOST if self._allowance is None else min(_MOST, self._allowance.left)
        if most_bits(symbols) > most:
            return math.inf
        return _LEAST * alone

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Symbols:
        size = math.prod(shape)
        if not size:
            return np.zeros(shape, dtype)
        reader = Reader(data)
        most, stride = reader.varint(), reader.varint()
        limits = np.iinfo(dtype)
        if most > max(limits.max, -limits.min) or not 0 < stride <= _STRIDES:
            raise ValueError("the largest magnitude or the stride is impossible")
        if size > _LARGEST:
            raise ValueError(f"{size} elements are more than contexts are for")
        coder = MixedDecoder(reader.rest(), self._allowance)
        outline = _outline(shape)
        rows = [[0] * outline[1] for _ in range(outline[0])]
        _Walk(coder, outline, most, stride, signed=dtype.kind == "i").run(rows)
        if not coder.read_to_the_end:
            raise ValueError("bytes follow the stream")
        return _array(rows, dtype, shape)


def in_stream(coder: Coder, symbols: Symbols | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Symbols:
    """Code an array in the stream of a coder, or decode it if none is given; the two numbers before it take 15 bits.

    Raises:
        ValueError: if what is decoded does not fit its type.
    """
    outline = _outline(shape)
    matrix = None if symbols is None else _matrix(symbols)
    most, stride = 0, 1
    if matrix is not None and matrix.size:
        most, stride = int(np.abs(matrix.astype(np.int16)).max()), _stride(np.asarray(matrix.any(axis=0)))
    head = Mixed()
    most = _plain_number(coder, head, most, 8)
    stride = _plain_number(coder, head, stride - 1, 6) + 1
    rows = [[0] * outline[1] for _ in range(outline[0])] if matrix is None else matrix.tolist()
    _Walk(coder, outline, most, stride, signed=dtype.kind == "i").run(rows)
    return _array(rows, dtype, shape)


def _plain_number(coder: Coder, model: Mixed, value: int, bits: int) -> int:
    found = 0
    for low in range(bits - 1, -1, -1):
        found = 2 * found + coder.code(value >> low & 1, model, [(low, found)], "number")
    return found


class _Walk:
    """The bits of a matrix in their order: a coder of either direction is given each of them, or gives it.

    Args:
        coder: encodes or decodes.
        shape: of the matrix.
        most: the largest magnitude.
        stride: of the flags of columns.
        signed: whether values have signs.
    """

    def __init__(self, coder: Coder, shape: tuple[int, int], most: int, stride: int, *, signed: bool) -> None:
        self._coder, self._shape, self._most, self._stride, self._signed = coder, shape, most, stride, signed
        self._places, self._values = Mixed(), Mixed()

    def run(self, rows: list[list[int]]) -> None:
        """Code the rows, or fill them."""
        if not self._most:
            return
        height, width = self._shape
        used = self._flags([any(row) for row in rows], 1)
        columns = self._flags([any(row[j] for row in rows) for j in range(width)], self._stride)
        lines = [rows[i] for i in range(height) if used[i]]
        where = [j for j in range(width) if columns[j]]
        code, model = self._coder.code, self._places
        seen = [0] * len(lines)
        for place, j in enumerate(where):
            left = where[place - 1] if place else -1
            before = where[place - 2] if place > 1 else -1
            above, so_far = 0, 0
            for i, line in enumerate(lines):
                one = int(left >= 0 and line[left] != 0)
                two = int(before >= 0 and line[before] != 0)
                row, column = _share(seen[i], place), _share(so_far, i)
                around = one + 2 * two + 4 * above
                bit = code(
                    int(line[j] != 0),
                    model,
                    (
                        ("row", i),
                        ("column", place),
                        ("shares", row, column),
                        ("around", around),
                        ("row share", row, one),
                        ("column share", column, above),
                    ),
                )
                above = bit
                if bit:
                    seen[i] += 1
                    so_far += 1
                    line[j] = self._value(line[j], i, line[left] if left >= 0 else 0)

    def _flags(self, flags: list[bool], stride: int) -> list[int]:
        """Code whether rows or columns are used, from the two before and the two around one stride before."""
        model = Mixed()
        found: list[int] = []
        for place, flag in enumerate(flags):
            one, two = (found[place - back] if place >= back else 0 for back in (1, 2))
            far = [found[place - back] if 0 < back <= place else 0 for back in (stride, stride - 1, stride + 1)]
            contexts = ("", ("near", one, two), ("far", *far), ("all", one, two, *far))
            found.append(self._coder.code(int(flag), model, contexts))
        return found

    def _value(self, value: int, row: int, left: int) -> int:
        """Code a value that is not 0."""
        return self._signed_value(value, row, left) if self._signed else self._place(value, row, left)

    def _signed_value(self, value: int, row: int, left: int) -> int:
        code, model, magnitude = self._coder.code, self._values, abs(value)
        found = 1
        while found < self._most:
            step, near = min(found, _UNARY), min(found, _NEAR)
            if not code(int(magnitude > found), model, (("more", step), ("row more", row, near)), near):
                break
            found += 1
        negative = code(int(value < 0), model, ("sign", ("row sign", row), ("left sign", (left > 0) - (left < 0))), "sign")
        return -found if negative else found

    def _place(self, value: int, row: int, left: int) -> int:
        code, model = self._coder.code, self._values
        found, bits = 0, (self._most - 1).bit_length()
        for bit in range(bits - 1, -1, -1):
            node = (bit, found)
            found = 2 * found + code(
                (value - 1) >> bit & 1, model, (("bit", node), ("row bit", row, node), ("left bit", left, node)), bit
            )
        return found + 1


def most_bits(symbols: Symbols) -> int:
    """At most so many bits are coded of an array."""
    matrix = _matrix(symbols)
    if not matrix.size:
        return 0
    places = int(matrix.any(axis=1).sum()) * int(matrix.any(axis=0).sum()) + sum(matrix.shape)
    magnitudes, others = np.abs(matrix.astype(np.int16)), int(np.count_nonzero(matrix))
    if matrix.dtype.kind == "i":
        return places + int(magnitudes.sum(dtype=np.int64)) + others
    return places + others * int(magnitudes.max()).bit_length()


def _share(count: int, of: int) -> int:
    """A class of the share of elements that are not 0 among those before: 0 to 7, by powers of two."""
    return ((64 * count + 25) // (of + 2)).bit_length()


def _outline(shape: tuple[int, ...]) -> tuple[int, int]:
    rows = shape[0] if len(shape) > 1 else 1
    return rows, math.prod(shape) // rows


def _matrix(symbols: Symbols) -> Symbols:
    return np.ascontiguousarray(symbols).reshape(_outline(symbols.shape)) if symbols.size else symbols.reshape(0, 0)


def _array(rows: list[list[int]], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Symbols:
    found, limits = np.array(rows, np.int16), np.iinfo(dtype)
    if found.size and (found.min() < limits.min or found.max() > limits.max):
        raise ValueError("a value does not fit its type")
    return found.astype(dtype).reshape(shape)


def _stride(flags: Symbols) -> int:
    """The distance at which flags of columns agree most often, 1 to 64."""
    agree = [float((flags[back:] == flags[:-back]).mean()) for back in range(2, min(_STRIDES, len(flags) // 2) + 1)]
    return 2 + int(np.argmax(agree)) if agree else 1
