"""The table of a histogram in few bytes: counts with few significant bits, each coded after the two before it."""

from __future__ import annotations

import numpy as np

from mirabelle.codecs.codec import Symbols
from mirabelle.codecs.mixing import Coder, Mixed, MixedDecoder, MixedEncoder
from mirabelle.codecs.varint import Reader, write_varints

# A count has so many significant bits, by how many symbols there are: 3 bits lose 0.07 % of the length, 6 bits nothing.
_SIGNIFICANT = ((1 << 15, 3), (1 << 18, 4), (1 << 62, 6))
_LITTLE = 128  # a table that is a smaller share of the symbols is not coded, which takes 10 ms
_LENGTH_BITS = 5  # of the length of a count in bits
_LARGEST = 1 << 32  # sum of counts, more than a file has elements
_BITS_OF_A_LENGTH = 1.9  # about
_MOST_OLD = 3 << 12  # sum of the counts in version 0


def counts_in_table(counts: Symbols) -> Symbols:
    """Counts rounded to their significant bits."""
    significant = next(bits for most, bits in _SIGNIFICANT if counts.sum() < most)
    lengths = np.frexp(counts.astype(np.float64))[1]
    unit = 2.0 ** np.maximum(lengths - significant, 0)
    kept: Symbols = (np.floor(counts / unit + 0.5) * unit).astype(np.int64)
    return kept


def counts_table(counts: Symbols) -> tuple[Symbols, bytes]:
    """(the counts that a table holds, the table): 0 and varints, or the length of a stream, and this stream."""
    kept = counts_in_table(counts)
    plain = b"\0" + write_varints(kept)
    if lengths_with_table(counts, kept)[1] >= len(plain):
        return kept, plain
    coder = MixedEncoder()
    _walk(coder, kept)
    stream = coder.finished()
    coded = write_varints([len(stream)]) + stream
    return kept, coded if stream and len(coded) < len(plain) else plain


def lengths_with_table(counts: Symbols, kept: Symbols) -> tuple[float, float]:
    """About the bytes (of symbols that occur so often, of their table), if the table holds the counts `kept`."""
    present = counts > 0
    symbols = float(counts[present] @ np.log2(kept.sum() / kept[present])) / 8
    plain = 1 + len(write_varints(kept))
    if _LITTLE * plain < symbols:
        return symbols, plain
    lengths = np.frexp(kept.astype(np.float64))[1]
    significant = next(bits for most, bits in _SIGNIFICANT if kept.sum() < most)
    coded = 2 + (len(kept) * _BITS_OF_A_LENGTH + np.minimum(np.maximum(lengths - 1, 0), significant - 1).sum()) / 8
    return symbols, min(float(coded), plain)


def read_counts(reader: Reader, kinds: int) -> Symbols:
    """The counts in a table.

    Raises:
        ValueError: if they are impossible.
    """
    length = reader.varint()
    if not length:
        return _checked(plain_counts(reader, kinds, _LARGEST))
    coder = MixedDecoder(reader.take(length))
    counts = np.zeros(kinds, np.int64)
    _walk(coder, counts)
    if not coder.read_to_the_end:
        raise ValueError("bytes follow a table of counts")
    return _checked(counts)


def plain_counts(reader: Reader, kinds: int, most: int = _MOST_OLD) -> Symbols:
    """Counts as varints.

    Raises:
        ValueError: if they are impossible.
    """
    counts = [reader.varint() for _ in range(kinds)]
    if not 0 < sum(counts) <= most + kinds:
        raise ValueError("the table of counts is impossible")
    return np.array(counts)


def _checked(counts: Symbols) -> Symbols:
    if not counts.any():
        raise ValueError("the table of counts is impossible")
    return counts


def _walk(coder: Coder, counts: Symbols) -> None:
    """Code the significant bits, 3 bits, and each count: its length in bits, and its bits below the highest one."""
    model = Mixed()
    lengths = [int(count).bit_length() for count in counts]
    needed = max([1, *(length - _trailing(int(count)) for count, length in zip(counts, lengths, strict=True) if length)])
    significant = _plain(coder, model, needed, "significant", 3)
    one = two = 0
    for place, count in enumerate(counts):
        length = 0
        for low in range(_LENGTH_BITS - 1, -1, -1):
            node = (low, length)
            bit = coder.code(lengths[place] >> low & 1, model, (("length", node), ("one", one, node), ("two", one, two, node)))
            length = 2 * length + bit
        found = min(length, 1)
        for low in range(length - 2, max(length - 1 - significant, -1), -1):
            found = 2 * found + coder.code(
                int(count) >> low & 1, model, (("bit", length - low, found), ("of", length, found)), 1
            )
        counts[place] = found << max(length - significant, 0)
        one, two = length, one


def _trailing(count: int) -> int:
    """How many of the lowest bits are 0."""
    return (count & -count).bit_length() - 1


def _plain(coder: Coder, model: Mixed, value: int, name: str, bits: int) -> int:
    found = 0
    for low in range(bits - 1, -1, -1):
        found = 2 * found + coder.code(value >> low & 1, model, [(name, low, found)], name)
    return found
