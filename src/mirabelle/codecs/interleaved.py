"""Entropy coding of long arrays with their histogram, in many streams that are decoded side by side, as vectors of NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mirabelle.codecs.codec import Symbols
from mirabelle.codecs.counts import Counts, byte_counts
from mirabelle.codecs.counts_table import counts_in_table, counts_table, lengths_with_table, read_counts
from mirabelle.codecs.histogram import front_of, lowest_and_kinds
from mirabelle.codecs.varint import Reader, write_varints

_EACH, _MOST_LANES = 2048, 1 << 14  # bytes of a lane, and most lanes; its state takes 0.2 % of them
_LEAST_LANES = 384  # fewer are not faster than `Histogram`, which needs no states
_MOST_STEPS = 512  # elements of a lane, and one more for each byte of the data
_SAFELY = 0.9  # of the estimated bytes, which the coder may miss by a little
MUCH_FASTER = 1.005  # it is taken if it needs at most so many times the bytes of another codec
_BITS = 16  # the frequencies add up to 2^16; a state lies between 2^16 and 2^32, and moves by words of 16 bits
_TOTAL = 1 << _BITS
_SHIFT, _LOW = np.uint32(_BITS), np.uint32(_TOTAL - 1)


class Interleaved:
    """Interleaved rANS of small integers with their histogram as a static model, for arrays of a million elements or more.

    Element i belongs to lane i mod n; each of the n lanes has a state of its own, and all share one row of words. The encoded
    data are: the lowest symbol, the number of symbols, their counts, n, the states and the words. If there is only one distinct
    symbol, the first two suffice.

    It decodes about 100 million elements a second on one core, `Histogram` about 25, and takes 0.2 % more bytes.

    A stream has at most 512 elements in a lane, and one more for each byte, so that a short file does not take long.

    Example:
        >>> codes = np.array([0, 0, 1, 0, -1, 0], dtype=np.int8)
        >>> Interleaved().decode(Interleaved().encode(codes), codes.shape, codes.dtype).tolist()
        [0, 0, 1, 0, -1, 0]

    Source: asymmetric numeral systems: Duda 2013, arXiv:1311.2540; interleaving: Giesen 2014, arXiv:1402.3392.
    """

    dtypes: tuple[str, ...] = ("int8", "uint8")
    exact: bool = True

    def encode(self, symbols: Symbols) -> bytes:
        return interleaved(symbols, byte_counts(symbols)[0])

    def estimate(self, symbols: Symbols, counts: Counts) -> float:
        """About the length of `encode(symbols)`, from the counts of its bytes; infinite for arrays that are not long."""
        return interleaved_length(counts[0], symbols.dtype)

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Symbols:
        size, reader = math.prod(shape), Reader(data)
        if not size:
            return np.zeros(shape, dtype)
        low, kinds = lowest_and_kinds(reader, dtype)
        if kinds == 1:
            return np.full(shape, low, dtype)
        frequencies = _frequencies(read_counts(reader, kinds))
        lanes = reader.varint()
        if not 0 < lanes <= min(size, _MOST_LANES) or -(-size // lanes) > _MOST_STEPS + len(data):
            raise ValueError(f"{lanes} lanes are impossible for {size} elements in {len(data)} bytes")
        states = np.frombuffer(reader.take(4 * lanes), "<u4").astype(np.uint32)
        if reader.left % 2:
            raise ValueError("a word is incomplete")
        words = np.frombuffer(reader.rest(), "<u2")
        symbols = _decoded(states, words, frequencies, size)
        symbols += np.uint8(low % 256)  # modulo 256
        return symbols.view(dtype).reshape(shape)


def interleaved(symbols: Symbols, counts: Counts) -> bytes:
    """Symbols of 8 bits coded with their histogram, which is in the counts of their bytes, (256,)."""
    if not symbols.size:
        return b""
    low, table, head = front_of(counts, symbols.dtype)
    if len(table) == 1:
        return head
    kept, coded = counts_table(table)
    frequencies = _frequencies(kept).astype(np.uint32)
    starts = np.cumsum(frequencies, dtype=np.uint32) - frequencies
    row = symbols.reshape(-1)
    lanes = min(_lanes(_length_of_words(table, frequencies), row.size), row.size)
    states = np.full(lanes, _TOTAL, np.uint32)
    words: list[bytes] = []
    for start in range((symbols.size - 1) // lanes * lanes, -1, -lanes):
        part = row[start : start + lanes].astype(np.int64) - low
        state, frequency = states[: part.size], frequencies[part]
        full = np.flatnonzero(state >= frequency << _SHIFT)
        words.append((state[full] & _LOW).astype("<u2").tobytes())
        state[full] >>= _SHIFT
        quotient, rest = np.divmod(state, frequency)
        state[:] = (quotient << _SHIFT) + rest + starts[part]
    return b"".join([head, coded, write_varints([lanes]), states.astype("<u4").tobytes(), *reversed(words)])


def interleaved_length(counts: Counts, dtype: np.dtype[Any]) -> float:
    """About the bytes of `interleaved` for symbols of 8 bits that occur so often, (256,); infinite for too few of them."""
    if np.count_nonzero(counts) < 2:  # noqa: PLR2004 (two kinds)
        return math.inf
    _, table, head = front_of(counts, dtype)
    kept = counts_in_table(table)
    length = _length_of_words(table, _frequencies(kept))
    if length < _LEAST_LANES * _EACH:
        return math.inf
    lanes = _lanes(length, int(counts.sum()))
    return len(head) + len(write_varints([lanes])) + lengths_with_table(table, kept)[1] + length + 4 * lanes


def _decoded(states: Symbols, words: Symbols, frequencies: Symbols, size: int) -> Symbols:
    """The places of the symbols, uint8.

    Raises:
        ValueError: if the words do not end where the symbols do.
    """
    symbols = np.repeat(np.arange(len(frequencies), dtype=np.uint8), frequencies)  # of each of the 2^16 slots
    starts = np.cumsum(frequencies) - frequencies
    offsets = np.arange(_TOTAL) - starts[symbols]
    steps = (frequencies[symbols].astype(np.uint32) << _SHIFT) | offsets.astype(np.uint32)
    out, at = np.empty(size, np.uint8), 0
    for start in range(0, size, len(states)):
        state = states[: size - start]
        slot = (state & _LOW).astype(np.intp)
        out[start : start + len(state)] = symbols[slot]
        step = steps[slot]
        state >>= _SHIFT
        state *= step >> _SHIFT
        state += step & _LOW
        empty = np.flatnonzero(state <= _LOW)
        word = words[at : at + len(empty)]
        if len(word) < len(empty):
            raise ValueError("the words end too early")
        state[empty] = state[empty] << _SHIFT | word
        at += len(empty)
    if at < len(words) or (states != _TOTAL).any():
        raise ValueError("the words do not end where the symbols do")
    return out


def _frequencies(counts: Symbols) -> Symbols:
    """The frequencies of at least two symbols, which add up to 2^16: ⌊count · 2^16 / sum⌋, but 1 where a count is not 0.

    What is missing, or too much, is that of the first of the most frequent symbols.

    Raises:
        ValueError: if only one count is not 0.
    """
    if np.count_nonzero(counts) < 2:  # noqa: PLR2004 (two symbols)
        raise ValueError("the table of counts has a single symbol")
    found = np.maximum(counts * _TOTAL // counts.sum(), counts > 0)
    found[np.argmax(counts)] += _TOTAL - found.sum()
    frequencies: Symbols = found
    return frequencies


def _length_of_words(counts: Symbols, frequencies: Symbols) -> float:
    """The bytes that symbols take which occur so often."""
    present = counts > 0
    return float(counts[present] @ (_BITS - np.log2(frequencies[present]))) / 8


def _lanes(length: float, size: int) -> int:
    """How many lanes so many elements in so many bytes have."""
    return min(max(int(length) // _EACH, -(-size // (_MOST_STEPS + int(_SAFELY * length))), 1), _MOST_LANES)
