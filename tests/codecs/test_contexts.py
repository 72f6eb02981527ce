"""Context mixing: the same bits back, fewer of them than with other codecs where elements resemble their neighbours."""

from __future__ import annotations

import hashlib
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mirabelle.codecs import Contexts, Histogram, Sparse
from mirabelle.codecs.counts import byte_counts
from mirabelle.codecs.mixing import Mixed, MixedDecoder, MixedEncoder, squash


def sparse(rows: int, columns: int, density: float, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return ((draw.random((rows, columns)) < density) * draw.choice([-2, -1, -1, 1, 1, 2], (rows, columns))).astype(np.int8)


@given(
    arrays(st.sampled_from([np.int8, np.uint8]), st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 127))
)
@settings(max_examples=60, deadline=None)
def test_arrays_come_back(symbols: np.ndarray) -> None:
    assert np.array_equal(Contexts().decode(Contexts().encode(symbols), symbols.shape, symbols.dtype), symbols)


@pytest.mark.parametrize("extreme", [-128, -127, 127])
def test_extremes_come_back(extreme: int) -> None:
    symbols = np.array([[extreme, 0], [0, 1]], np.int8)
    assert np.array_equal(Contexts().decode(Contexts().encode(symbols), (2, 2), symbols.dtype), symbols)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=300))
@settings(max_examples=80, deadline=None)
def test_bits_come_back_in_any_contexts(bits: list[tuple[bool, int]]) -> None:
    encoder, model = MixedEncoder(), Mixed()
    for bit, context in bits:
        encoder.code(int(bit), model, ("all", context), context)
    decoder, again = MixedDecoder(encoder.finished()), Mixed()
    assert [decoder.code(0, again, ("all", context), context) for _, context in bits] == [int(bit) for bit, _ in bits]
    assert decoder.read_to_the_end


def test_a_random_bit_takes_a_bit_and_a_rare_one_its_entropy() -> None:
    draw = np.random.default_rng(0)
    for share in (0.5, 0.02):
        encoder, model = MixedEncoder(), Mixed()
        for bit in draw.random(20_000) < share:
            encoder.code(int(bit), model, ("",))
        entropy = -(share * math.log2(share) + (1 - share) * math.log2(1 - share))
        assert 8 * len(encoder.finished()) == pytest.approx(20_000 * entropy, rel=0.03)


def test_squash_is_the_logistic_function() -> None:
    for x in range(-2047, 2048, 7):
        assert squash(x) == pytest.approx(4096 / (1 + math.exp(-x / 256)), rel=0.05, abs=3)


def test_structure_is_worth_more_than_the_histogram() -> None:
    symbols = np.zeros((100, 784), np.int8)
    symbols[::3, 200:500] = sparse(34, 300, 0.1)
    for column in range(0, 784, 28):
        symbols[:, column : column + 9] = 0
    smallest = len(Contexts().encode(symbols))
    assert smallest < 0.92 * len(Sparse(Histogram()).encode(symbols)) < len(Histogram().encode(symbols))


def test_symbols_without_structure_cost_little_more_than_their_entropy() -> None:
    symbols = sparse(60, 200, 0.2)
    shares = np.unique(symbols, return_counts=True)[1] / symbols.size
    entropy = float(-(shares * np.log2(shares)).sum()) * symbols.size / 8
    assert len(Contexts().encode(symbols)) < 1.06 * entropy


def test_the_bytes_never_change() -> None:
    """A file that was packed once is read for ever: the coder is part of the format."""
    data = Contexts().encode(sparse(40, 50, 0.15, seed=7)) + Contexts().encode(
        np.abs(sparse(9, 70, 0.4, seed=8)).view(np.uint8)
    )
    assert (len(data), hashlib.sha256(data).hexdigest()[:16]) == (344, "749f161396dacb59")


def test_what_would_take_long_is_not_tried() -> None:
    large, small = sparse(1000, 1000, 0.9), sparse(30, 30, 0.5)
    diverse = np.random.default_rng(0).integers(-100, 100, (100, 100), np.int8)
    for slow in (large, diverse):
        assert Contexts().estimate(slow, byte_counts(slow)) == math.inf
    assert Contexts().estimate(small, byte_counts(small)) < len(Contexts().encode(small))


@pytest.mark.parametrize("head", [b"\xff\x01\x01", b"\x01\x00", b"\x01\x41", b""])
def test_an_impossible_head_is_refused(head: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Contexts().decode(head, (2, 2), np.dtype(np.int8))


@pytest.mark.parametrize("shape", [(3000, 3000), (2000, 2000), (1, 1 << 20)])
def test_a_short_stream_for_a_large_array_is_refused_soon(shape: tuple[int, ...]) -> None:
    """Behind the end of a stream there are zeros, which could be read for hours."""
    begin = time.process_time()
    with pytest.raises(ValueError, match="contexts"):
        Contexts().decode(b"\x01\x01\x55", shape, np.dtype(np.int8))
    assert time.process_time() - begin < 10


def test_what_follows_the_stream_is_refused() -> None:
    symbols = sparse(10, 10, 0.3)
    with pytest.raises(ValueError, match="follow"):
        Contexts().decode(Contexts().encode(symbols) + b"\1\2\3\4\5", symbols.shape, symbols.dtype)
