"""Contract of the family of codecs, run over its door, and what each gives."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from mirabelle import codecs
from mirabelle.artifact.tensors import Tensor, codecs_of_a_file, coded
from mirabelle.codecs import Codec, Contexts, Deflate, Histogram, Interleaved, Palette, Planes, Sparse
from mirabelle.codecs.codec import EstimatedCodec
from mirabelle.codecs.counts import byte_counts
from mirabelle.codecs.deflate import deflate, inflate
from mirabelle.codecs.varint import Reader, write_varints

FAMILY: list[EstimatedCodec] = [
    Deflate(), Histogram(), Planes(), Sparse(Histogram()), Sparse(Planes()), Contexts(), Palette(), Interleaved()
]  # fmt: skip
CASES = [(codec, dtype) for codec in FAMILY for dtype in codec.dtypes]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)


def test_every_codec_behind_the_door_is_tested() -> None:
    classes = {name for name in codecs.__all__ if name != "Codec"}
    assert {type(codec).__name__ for codec in FAMILY} == classes


@pytest.mark.parametrize(
    ("codec", "dtype"), CASES, ids=lambda value: type(value).__name__ if not isinstance(value, str) else value
)
def test_every_array_comes_back(codec: Codec, dtype: str) -> None:
    @given(symbols=hnp.arrays(np.dtype(dtype), SHAPES), zeros=st.booleans())
    @settings(max_examples=25, deadline=None)
    def comes_back(symbols: np.ndarray, zeros: bool) -> None:
        if zeros:
            symbols = np.where(np.arange(symbols.size).reshape(symbols.shape) % 7 < 6, np.zeros_like(symbols), symbols)
        decoded = codec.decode(codec.encode(symbols), symbols.shape, symbols.dtype)
        assert decoded.dtype == symbols.dtype
        assert decoded.tobytes() == symbols.tobytes()

    comes_back()


@pytest.mark.parametrize("codec", FAMILY, ids=lambda codec: type(codec).__name__)
@pytest.mark.parametrize("data", [b"", b"\xff" * 3, b"\x00" * 5, b"\x80" * 20, b"\x01\x02\x03\x04\x05"])
def test_bytes_that_cannot_be_are_refused_or_decode_to_the_right_shape(codec: Codec, data: bytes) -> None:
    dtype = np.dtype(codec.dtypes[0])
    try:
        decoded = codec.decode(data, (4, 5), dtype)
    except ValueError:
        return
    assert decoded.shape == (4, 5)
    assert decoded.dtype == dtype


def test_a_histogram_comes_near_the_entropy() -> None:
    symbols = np.random.default_rng(0).normal(0, 6, size=50_000).round().astype(np.int8)
    p = np.unique(symbols, return_counts=True)[1] / symbols.size
    entropy_bytes = -(p * np.log2(p)).sum() * symbols.size / 8
    assert len(Histogram().encode(symbols)) < 1.01 * entropy_bytes + 100


LONG = np.random.default_rng(0).normal(0, 20, 2_000_000).round().clip(-127, 127).astype(np.int8)


@pytest.mark.parametrize("values", [LONG, LONG.astype(np.uint8), np.where(LONG % 3, LONG, 0).reshape(1000, 2000)])
def test_a_long_array_is_interleaved_at_a_few_bytes_more(values: np.ndarray) -> None:
    counts, one, other = byte_counts(values), Interleaved(), Histogram()
    data = one.encode(values)
    assert np.array_equal(one.decode(data, values.shape, values.dtype), values)
    assert one.estimate(values, counts) == pytest.approx(len(data), rel=0.0005)
    assert len(data) <= 1.003 * len(other.encode(values))
    tensor = Tensor("t", 3 if values.dtype == np.int8 else 2, values.shape)
    assert coded(tensor, memoryview(values.tobytes()), codecs_of_a_file(), []).body == data


def test_a_long_array_that_repeats_is_not_interleaved() -> None:
    values = np.tile(np.random.default_rng(0).integers(-127, 128, 1000).astype(np.int8), 3000)
    one = coded(Tensor("t", 3, values.shape), memoryview(values.tobytes()), codecs_of_a_file(), [])
    assert one.number == 1
    assert len(one.body) < 20_000


def test_few_bytes_with_many_steps_are_refused() -> None:
    values = np.zeros(400, np.int8)
    values[7] = 1
    data = bytearray(Interleaved().encode(values))
    with pytest.raises(ValueError, match=r"1 lanes are impossible for 1048576 elements in \d+ bytes"):
        Interleaved().decode(bytes(data), (1 << 20,), values.dtype)


@pytest.mark.parametrize("share", [0.5, 0.01, 0.001, 1e-5])
@pytest.mark.parametrize("size", [300, 5_000, 100_000, 1_500_000])
def test_what_is_interleaved_has_lanes_enough(share: float, size: int) -> None:
    values = (np.random.default_rng(0).random(size) < share).astype(np.int8)
    values[:2] = 0, 1
    assert np.array_equal(Interleaved().decode(Interleaved().encode(values), values.shape, values.dtype), values)


def test_a_table_with_a_single_symbol_is_refused() -> None:
    data = write_varints([0, 2]) + b"\0" + write_varints([5, 0, 1]) + bytes([0, 0, 1, 0])
    with pytest.raises(ValueError, match="single symbol"):
        Interleaved().decode(data, (4,), np.dtype(np.uint8))


def test_a_long_array_of_little_content_is_not_interleaved() -> None:
    values = (np.random.default_rng(0).random(3_000_000) < 0.001).astype(np.int8)
    assert Interleaved().estimate(values, byte_counts(values)) == np.inf


def test_interleaved_words_that_are_too_few_or_too_many_are_refused() -> None:
    codec, values = Interleaved(), LONG[:20_000]
    data = codec.encode(values)
    for wrong in (data[:-2], data + b"\0\0", data[:-1]):
        with pytest.raises(ValueError, match=r"words|word"):
            codec.decode(wrong, values.shape, values.dtype)
    with pytest.raises(ValueError, match="lanes are impossible"):
        codec.decode(data, (3,), values.dtype)


def test_sparse_uses_that_rows_and_columns_differ_in_density() -> None:
    generator = np.random.default_rng(0)
    density = np.outer(generator.choice([0.0, 0.05, 0.4], 200), generator.choice([0.0, 0.1, 1.0], 300))
    codes = np.where(generator.random((200, 300)) < density, generator.integers(1, 4, (200, 300)), 0).astype(np.int8)
    assert len(Sparse(Histogram()).encode(codes)) < 0.75 * len(Histogram().encode(codes))


DRAW = np.random.default_rng(0)
LARGE = {
    "weights": DRAW.normal(0, 0.05, (300, 400)).astype(np.float32),
    "codes": DRAW.normal(0, 20, (300, 400)).round().clip(-127, 127).astype(np.int8),
    "pruned weights": np.where(DRAW.random((300, 400)) < 0.1, DRAW.normal(0, 0.05, (300, 400)), 0).astype(np.float32),
    "pruned codes": np.where(DRAW.random((300, 400)) < 0.1, DRAW.normal(0, 20, (300, 400)).round(), 0).astype(np.int8),
    "repeated rows": np.tile(DRAW.normal(0, 0.05, (1, 400)).astype(np.float32), (300, 1)),
    "noise": DRAW.integers(0, 256, 400_000, dtype=np.uint8).view(np.float32),
    "indices": np.arange(50_000),
    "constant": np.ones((300, 400), np.float32),
    "half floats": DRAW.normal(0, 0.05, (300, 400)).astype(np.float16),
}


def declines(codec: EstimatedCodec, values: np.ndarray) -> bool:
    """Whether a codec is not for an array: it is short, it would take long, or too many values are distinct."""
    return isinstance(codec, (Contexts, Palette, Interleaved)) and codec.estimate(values, byte_counts(values)) == np.inf


@pytest.mark.parametrize("name", LARGE)
def test_the_codec_chosen_by_estimates_is_the_one_that_gives_the_fewest_bytes(name: str) -> None:
    values = LARGE[name]
    tensor = numpy_helper.from_array(values, name)
    one = Tensor(name, tensor.data_type, values.shape)
    body = coded(one, memoryview(tensor.raw_data), codecs_of_a_file(), []).body
    suited = [codec for codec in FAMILY if values.dtype.name in codec.dtypes and not declines(codec, values)]
    least = min([len(codec.encode(values)) for codec in suited])
    assert len(body) <= 1.001 * min(least, values.nbytes)


@pytest.mark.parametrize("codec", FAMILY, ids=lambda codec: type(codec).__name__)
@pytest.mark.parametrize("name", LARGE)
def test_an_estimate_comes_near_the_length(codec: EstimatedCodec, name: str) -> None:
    values = LARGE[name]
    if values.dtype.name not in codec.dtypes:
        return
    if declines(codec, values):
        return
    estimate, length = codec.estimate(values, byte_counts(values)), len(codec.encode(values))
    if codec.exact:
        assert estimate == pytest.approx(length, rel=0.001, abs=500) or (isinstance(codec, Sparse) and estimate == np.inf)
    else:
        assert estimate <= length


def test_a_negative_zero_is_kept() -> None:
    values = np.array([0.0, -0.0, 1.0], dtype=np.float32)
    codec = Sparse(Planes())
    assert codec.decode(codec.encode(values), (3,), values.dtype).tobytes() == values.tobytes()


def test_inflate_gives_exactly_what_was_announced() -> None:
    packed = deflate(b"a" * 1000, b"aaaa")
    assert inflate(packed, 1000, b"aaaa") == b"a" * 1000
    for size in (0, 999, 1001):
        with pytest.raises(ValueError, match=r"do not decompress|invalid"):
            inflate(packed, size, b"aaaa")


@given(st.lists(st.integers(0, 2**63)))
def test_varints_come_back(values: list[int]) -> None:
    reader = Reader(write_varints(values))
    assert [reader.varint() for _ in values] == values
    assert reader.left == 0


def test_a_reader_does_not_read_past_the_end() -> None:
    with pytest.raises(ValueError, match="3 bytes expected"):
        Reader(b"ab").take(3)
    with pytest.raises(ValueError, match="longer than ten"):
        Reader(b"\xff" * 12).varint()
