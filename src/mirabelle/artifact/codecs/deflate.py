"""Deflate compression by zlib, for graphs, names, and data for which no other codec is better."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from mirabelle.artifact.codecs.codec import Symbols


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

    def encode(self, symbols: Symbols) -> bytes:
        return deflate(np.ascontiguousarray(symbols).tobytes())

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Symbols:
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer(inflate(data, size), dtype).reshape(shape)


def deflate(data: bytes, dictionary: bytes = b"") -> bytes:
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
