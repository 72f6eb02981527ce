"""Deflate compression by zlib, for graphs, names, and data for which no other codec is better."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from mirabelle.codecs.codec import Symbols
from mirabelle.codecs.counts import Counts

_PART, _PARTS, _SHARE = 1 << 16, 2, 16  # what a length is estimated from: parts of so many bytes, at least 2, a 16th in all
_UNSURE, _REGULAR = 0.995, 0.5  # parts that become so short repeat themselves, so that the whole may be shorter by any factor


class Deflate:
    """Encodes the bytes of any array as a raw deflate stream, without a zlib header.

    Source: RFC 1951.
    """

    dtypes: tuple[str, ...] = (
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "float16",
        "float32",
        "float64",
        "bool",
    )
    exact: bool = False

    def encode(self, symbols: Symbols) -> bytes:
        return deflate(np.ascontiguousarray(symbols).data)

    def estimate(self, symbols: Symbols, counts: Counts) -> float:
        """A lower bound of the length of `encode(symbols)`, from parts spread over the array; 0 if it may be anything."""
        del counts
        data = np.ascontiguousarray(symbols).reshape(-1).view(np.uint8)
        parts = max(_PARTS, data.size // (_PART * _SHARE))
        starts = np.linspace(0, max(data.size - _PART, 0), parts).astype(int) if data.size > _PART * parts else [0]
        taken = [data[start : start + _PART] if len(starts) > 1 else data for start in starts]
        share = sum(len(deflate(part.data)) for part in taken) / max(sum(part.size for part in taken), 1)
        return _UNSURE * share * data.size if share > _REGULAR else 0.0

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Symbols:
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer(inflate(data, size), dtype).reshape(shape)


def deflate(data: bytes | memoryview, dictionary: bytes = b"") -> bytes:
    """Compress to a raw deflate stream; `dictionary` is a preset dictionary, which `inflate` needs, too."""
    packer = (
        zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=dictionary)
        if dictionary
        else zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    )
    return packer.compress(data) + packer.flush()


def inflate(data: bytes, size: int, dictionary: bytes = b"") -> bytes:
    """Decompress a raw deflate stream of exactly `size` bytes.

    Raises:
        ValueError: if the data are damaged, or do not decompress to exactly `size` bytes.
    """
    unpacker = zlib.decompressobj(-15, zdict=dictionary) if dictionary else zlib.decompressobj(-15)
    try:
        plain = unpacker.decompress(data, size + 1) if size else unpacker.decompress(data, 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(plain) != size or unpacker.unconsumed_tail:
        raise ValueError(f"the data do not decompress to {size} bytes")
    return plain
