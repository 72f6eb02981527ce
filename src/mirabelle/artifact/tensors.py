"""How the data of one tensor become bytes of a .mira file, and back; each tensor has the codec that suits it best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mirabelle.artifact.wire import Fields, number_of
from mirabelle.codecs import Codec, Contexts, Deflate, Histogram, Interleaved, Palette, Planes, Sparse
from mirabelle.codecs.codec import CODECS, EstimatedCodec, Symbols
from mirabelle.codecs.counts import byte_counts
from mirabelle.codecs.interleaved import MUCH_FASTER
from mirabelle.codecs.mixing import Allowance
from mirabelle.codecs.narrow import narrowed, widened

RAW, OWN = 0, 255  # not coded; a codec of a user's own
NARROW = 64  # is added to the number of a codec that codes integers of less than 8 bits one by one
BFLOAT16 = 16  # the number of the type
_FAST = 12  # `Interleaved`
_SMALL, _CLOSE = 1 << 14, 64  # bytes; codecs for a small tensor are both tried if their estimates differ less

# Number of an ONNX type -> the type of the coded elements. Bfloat16 and floats of 8 bits are coded as integers of their bits.
_DTYPES = {
    1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8", 12: "<u4", 13: "<u8",
    14: "<c8", 15: "<c16", 16: "<u2", 17: "u1", 18: "u1", 19: "u1", 20: "u1", 24: "u1",
}  # fmt: skip
# Types of less than 8 bits, several of which ONNX stores in a byte -> (bits, whether they are signed; None: no integers).
_NARROW_TYPES = {21: (4, False), 22: (4, True), 23: (4, None), 25: (2, False), 26: (2, True)}
_NAMES = {
    1: "float", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "double",
    12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8e4m3fn", 18: "float8e4m3fnuz",
    19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4e2m1", 24: "float8e8m0",
    25: "uint2", 26: "int2",
}  # fmt: skip
_NOT_CODED = {0: "UNDEFINED", 8: "STRING", 27: "FLOAT6E2M3", 28: "FLOAT6E3M2"}
# Tags of the fields of a tensor.
_SIZE, _TYPE, _NAME, _DOCUMENTATION, _LOCATION, _METADATA = 1 << 3, 2 << 3, 8 << 3 | 2, 12 << 3 | 2, 14 << 3, 16 << 3 | 2
_KNOWN = {_SIZE, _TYPE, _NAME, _DOCUMENTATION, _LOCATION, _METADATA}
_MOST_SIZES = 32  # of an array
_EXTERNAL = 13  # number of a field


def codecs_of_a_file(version: int = 1) -> Mapping[int, EstimatedCodec]:
    """The codecs of Mirabelle by their numbers; together they code only so many bits in contexts as a file may have."""
    allowance, histogram = Allowance(), Histogram(version)
    planes = Planes(histogram)
    return {
        1: Deflate(),
        2: histogram,
        3: planes,
        4: Sparse(histogram, histogram),
        5: Sparse(planes, histogram),
        6: Contexts(allowance),
        7: Palette(allowance, histogram),
        **({_FAST: Interleaved()} if version else {}),
    }


@dataclass(frozen=True)
class Tensor:
    """Name, type and shape of a tensor of an ONNX model.

    Args:
        name: of the tensor.
        kind: number of its type in ONNX.
        shape: its sizes.
    """

    name: str
    kind: int
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the coded elements."""
        return np.dtype("u1" if self.kind in _NARROW_TYPES else _DTYPES[self.kind])

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the coded elements: the tensor's own, or for types of less than 8 bits the number of bytes."""
        found = _NARROW_TYPES.get(self.kind)
        return self.shape if found is None else ((math.prod(self.shape) * found[0] + 7) // 8,)

    @property
    def length(self) -> int:
        """Bytes of its data."""
        return math.prod(self.stored_shape) * self.dtype.itemsize

    @property
    def kind_name(self) -> str:
        """The name of its type in ONNX, in lower case."""
        return _NAMES[self.kind]

    @property
    def integers(self) -> tuple[int, np.dtype[Any]] | None:
        """(bits, type that holds one) of integers of less than 8 bits; None for other types."""
        bits, signed = _NARROW_TYPES.get(self.kind, (0, None))
        return None if signed is None else (bits, np.dtype(np.int8 if signed else np.uint8))

    def array(self, raw: bytes) -> Symbols:
        """The values, one element for each; bfloat16 and floats of 8 bits or less as integers of their bits."""
        if self.integers is not None:
            bits, dtype = self.integers
            return widened(raw, bits, self.shape, signed=dtype.kind == "i")
        return np.frombuffer(raw, self.dtype).reshape(self.stored_shape)


def tensor_of(fields: Fields) -> Tensor:
    """The tensor that a message describes.

    Raises:
        ValueError: if its type or a size is impossible, or if its data lie elsewhere.
    """
    name = next((value.decode(errors="replace") for tag, value in fields if tag == _NAME), "")
    kind = next((value for tag, value in fields if tag == _TYPE), 0)
    shape = tuple(value for tag, value in fields if tag == _SIZE)
    if kind not in _DTYPES and kind not in _NARROW_TYPES:
        raise ValueError(f'tensor "{name}" has type {_NOT_CODED.get(kind, kind)}, which cannot be packed')
    if any(size >= 1 << 63 for size in shape):
        raise ValueError(f'tensor "{name}" has a negative size')
    if len(shape) > _MOST_SIZES or math.prod(max(size, 1) for size in shape) >= 1 << 62:
        raise ValueError(f'tensor "{name}" has a shape that no array has')
    if any(number_of(tag) == _EXTERNAL or (tag == _LOCATION and value) for tag, value in fields):
        raise ValueError(f'tensor "{name}" is stored in another file')
    if any(tag not in _KNOWN for tag, _ in fields):
        raise ValueError(f'tensor "{name}" does not store its data as bytes')
    return Tensor(name, kind, shape)


@dataclass(frozen=True)
class Coded:
    """The coded data of a tensor.

    Args:
        number: of the codec.
        name: of a user's own codec.
        body: the coded data.
    """

    number: int
    name: str
    body: bytes | memoryview

    @property
    def length(self) -> int:
        return len(self.name) + len(self.body)


def coded(tensor: Tensor, raw: bytes | memoryview, codecs: Mapping[int, EstimatedCodec], own: Sequence[Codec]) -> Coded:
    """Code the data of a tensor with the codec that needs the fewest bytes, or 0.5 % more if it is decoded much faster."""
    values = np.frombuffer(raw, tensor.dtype).reshape(tensor.stored_shape)
    best = Coded(RAW, "", raw)
    tried = [Coded(number, "", codec.encode(values)) for number, codec in _likely(values, codecs)]
    tried += [
        Coded(OWN, CODECS.name_of(type(codec)), codec.encode(values)) for codec in own if values.dtype.name in codec.dtypes
    ]
    if tensor.integers is not None:
        integers = tensor.array(bytes(raw))
        if narrowed(integers, tensor.integers[0]) == raw:  # only zeros fill the last byte
            tried += [Coded(number + NARROW, "", codec.encode(integers)) for number, codec in _likely(integers, codecs)]
    return min([best, *tried], key=lambda one: one.length / (MUCH_FASTER if one.number % NARROW == _FAST else 1))


def _likely(values: Symbols, codecs: Mapping[int, EstimatedCodec]) -> list[tuple[int, EstimatedCodec]]:
    """The codecs of Mirabelle that may need the fewest bytes, by what they estimate.

    Of those whose estimates are close, it is `Interleaved` alone if that takes at most 0.5 % more than the best of them.
    """
    suited = {number: codec for number, codec in codecs.items() if values.dtype.name in codec.dtypes}
    if not suited or not values.size:
        return []
    counts = byte_counts(values)
    lengths = {number: codec.estimate(values, counts) for number, codec in suited.items()}
    most = min([values.nbytes, *(length for number, length in lengths.items() if suited[number].exact)])
    if lengths.get(_FAST, math.inf) <= MUCH_FASTER * most:
        suited = {number: codec for number, codec in suited.items() if number == _FAST or not codec.exact}
        most = lengths[_FAST]
    most += _CLOSE if values.nbytes <= _SMALL else 0
    return [(number, codec) for number, codec in suited.items() if lengths[number] <= most]


def decoded(tensor: Tensor, one: Coded, codecs: Mapping[int, EstimatedCodec]) -> bytes:
    """The data of a tensor.

    Raises:
        ValueError: if they are not coded so.
        UserError: E106 if the module of a user's own codec is not imported.
    """
    narrow = tensor.integers if one.number - NARROW in codecs else None
    codec = _codec(tensor, one, codecs, narrow=narrow is not None)
    if codec is None:
        if len(one.body) != tensor.length:
            raise ValueError(f'tensor "{tensor.name}" has {len(one.body)} bytes instead of {tensor.length}')
        return bytes(one.body)
    bits, dtype = narrow or (0, tensor.dtype)
    if dtype.name not in codec.dtypes:
        raise ValueError(f'tensor "{tensor.name}" has codec {type(codec).__name__}, which does not code {dtype.name}')
    found = codec.decode(bytes(one.body), tensor.shape if narrow else tensor.stored_shape, dtype)
    raw = narrowed(found, bits) if narrow else found.astype(dtype, copy=False).tobytes()
    if len(raw) != tensor.length:
        raise ValueError(f'tensor "{tensor.name}" decodes to {len(raw)} bytes instead of {tensor.length}')
    return raw


def _codec(tensor: Tensor, one: Coded, codecs: Mapping[int, EstimatedCodec], *, narrow: bool) -> Codec | None:
    if one.number == RAW:
        return None
    if one.number == OWN:
        cls: Callable[[], Any] = CODECS.imported_member(one.name)
        codec = cls()
        if not isinstance(codec, Codec):
            raise ValueError(f'tensor "{tensor.name}" names "{one.name}", which is not a codec')
        return codec
    number = one.number - NARROW if narrow else one.number
    if number not in codecs:
        raise ValueError(f'tensor "{tensor.name}" has the unknown codec {one.number}')
    return codecs[number]
