"""Bytes with repeats in them, by zlib: graphs, names, whatever has no better model."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from mirabelle.artifact.codecs.codec import Symbols


class Deflate:
    """Any array through zlib's deflate, without its header.

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
    """Raw deflate; `dictionary` holds strings that both sides know beforehand."""
    packer = (
        zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=dictionary)
        if dictionary
        else zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    )
    return packer.compress(data) + packer.flush()


def inflate(data: bytes, size: int, dictionary: bytes = b"") -> bytes:
    """Exactly `size` bytes again.

    Raises:
        ValueError: when the data are damaged, or give more or less than `size` bytes.
    """
    unpacker = zlib.decompressobj(-15, zdict=dictionary) if dictionary else zlib.decompressobj(-15)
    try:
        plain = unpacker.decompress(data, size + 1) if size else unpacker.decompress(data, 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(plain) != size or unpacker.unconsumed_tail:
        raise ValueError(f"{size} bytes wanted, another number found")
    return plain
