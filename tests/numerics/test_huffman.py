"""The length of a Huffman code, against a search of all codes."""

from __future__ import annotations

from itertools import product

import pytest

from mirabelle.numerics.huffman import huffman_bits


@pytest.mark.parametrize("counts", [[1, 1, 1], [7, 1, 1, 2], [5, 5, 5, 5], [13, 8, 5, 3, 2], [1, 100]])
def test_no_prefix_code_is_shorter(counts: list[int]) -> None:
    """Kraft: there is a prefix code of these lengths if and only if Σ 2^−length is at most 1."""
    codes = product(range(1, len(counts) + 1), repeat=len(counts))
    best = min(
        sum(count * length for count, length in zip(counts, lengths, strict=True))
        for lengths in codes
        if sum(2.0**-length for length in lengths) <= 1
    )
    assert huffman_bits(counts) == best


def test_one_kind_of_symbol_takes_a_bit_each_and_no_symbols_take_none() -> None:
    assert (huffman_bits([0, 9]), huffman_bits([]), huffman_bits([0, 0])) == (9, 0, 0)
