"""The contract test of a codec."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mirabelle.codecs.codec import CODECS, Codec, Symbols

_SHAPES = ((0,), (1,), (7,), (3, 0), (5, 4), (4, 3, 2, 2), ())


def check_codec(codec: Codec) -> None:
    """Check that a codec fulfils the contract of codecs.

    Arrays of each of its dtypes are decoded to the same bits, for every shape and content: empty, constant, sparse, random,
    with NaN, infinities and negative zeros. Equal arrays give equal bytes. Truncated bytes raise a ValueError.

    Args:
        codec: the codec to check.

    Raises:
        AssertionError: with the part of the contract that is violated.

    Example:
        >>> from mirabelle.codecs import Histogram
        >>> check_codec(Histogram())
    """
    assert isinstance(codec, Codec), "a codec has `dtypes`, `encode(symbols)` and `decode(data, shape, dtype)`"
    assert codec.dtypes, "`dtypes` must name the dtypes that the codec encodes"
    assert CODECS.is_member(type(codec)), "its class must be a codec"
    for name in codec.dtypes:
        for symbols in _arrays(np.dtype(name)):
            data = codec.encode(symbols)
            what = f"{name} of shape {symbols.shape}"
            assert isinstance(data, bytes), f"encode() must return bytes; got {type(data).__name__}"
            assert codec.encode(symbols) == data, f"the same array must give the same bytes ({what})"
            found = codec.decode(data, symbols.shape, symbols.dtype)
            assert (found.shape, found.dtype) == (symbols.shape, symbols.dtype), f"decode() must return {what}"
            assert found.tobytes() == symbols.tobytes(), f"decode() must return the same bits ({what})"
        _check_damage(codec, np.dtype(name))


def _arrays(dtype: np.dtype[np.generic]) -> Iterator[Symbols]:
    random = np.random.default_rng(0)
    for shape in _SHAPES:
        count = int(np.prod(shape))
        raw = random.integers(0, 256, count * dtype.itemsize, np.uint8).view(dtype)
        yield raw.reshape(shape)  # for floating-point dtypes also NaN, infinities and subnormal numbers
        yield np.zeros(shape, dtype)
        yield np.ones(shape, dtype)
        yield np.where(random.random(shape) < 0.2, 3, 0).astype(dtype)  # noqa: PLR2004 (a fifth)
    if dtype.kind == "f":
        yield np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1.0], dtype)


def _check_damage(codec: Codec, dtype: np.dtype[np.generic]) -> None:
    """Check that truncated bytes raise a ValueError or give another array."""
    symbols = np.random.default_rng(1).integers(0, 100, 64).astype(dtype)
    data = codec.encode(symbols)
    try:
        found = codec.decode(data[: len(data) // 2], symbols.shape, dtype)
    except ValueError:
        return
    except Exception as error:
        raise AssertionError(f"truncated bytes must raise ValueError; got {type(error).__name__}") from error
    assert found.tobytes() != symbols.tobytes(), "half of the bytes must not give the whole array"
