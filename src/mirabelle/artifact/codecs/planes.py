"""Byte planes: all lowest bytes of an array, then all second bytes, and so on, each coded with its own histogram."""

from __future__ import annotations

from typing import Any

import numpy as np

from mirabelle.artifact.codecs.codec import Symbols
from mirabelle.artifact.codecs.histogram import Histogram
from mirabelle.artifact.codecs.varint import Reader, write_varints

_RAW, _CODED = 0, 1


class Planes:
    """Codes floats and wide integers as byte planes; a plane that does not get smaller is stored uncompressed.

    Example:
        >>> scales = np.array([0.5, 0.25, 0.5], dtype=np.float32)
        >>> Planes().decode(Planes().encode(scales), (3,), scales.dtype).tolist()
        [0.5, 0.25, 0.5]
    """

    dtypes: tuple[str, ...] = ("float32", "float64", "float16", "int16", "int32", "int64", "uint16", "uint32", "uint64")

    def encode(self, symbols: Symbols) -> bytes:
        little = np.ascontiguousarray(symbols.reshape(-1)).astype(symbols.dtype.newbyteorder("<"))
        planes = little.view(np.uint8).reshape(-1, symbols.dtype.itemsize).T
        out = b""
        for plane in planes:
            coded = Histogram().encode(plane)
            kind, body = (_CODED, coded) if len(coded) < plane.size else (_RAW, plane.tobytes())
            out += write_varints([kind, len(body)]) + body
        return out

    def decode(self, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Symbols:
        size, reader = int(np.prod(shape)), Reader(data)
        planes = []
        for _ in range(dtype.itemsize):
            kind, length = reader.varint(), reader.varint()
            body = reader.take(length)
            if kind == _CODED:
                planes.append(Histogram().decode(body, (size,), np.dtype(np.uint8)))
            elif kind == _RAW and length == size:
                planes.append(np.frombuffer(body, np.uint8))
            else:
                raise ValueError("a plane has the wrong length")
        little = np.stack(planes, axis=1).reshape(-1).view(dtype.newbyteorder("<"))
        return little.astype(dtype).reshape(shape)
