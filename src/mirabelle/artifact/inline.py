"""The data of small tensors in the head of a .mira file, in its stream of bits."""

from __future__ import annotations

import math
import struct

import numpy as np

from mirabelle.artifact.multiples import MOST_STEPS, multiples_of, step_of
from mirabelle.artifact.structure import Structure
from mirabelle.artifact.tensors import Tensor
from mirabelle.codecs.codec import Symbols
from mirabelle.codecs.contexts import in_stream
from mirabelle.codecs.narrow import narrowed
from mirabelle.codecs.shortest import FEW

INLINE, INLINE_CONTEXTS, MULTIPLES, MATRIX = 8, 9, 11, 13  # numbers of codecs: element by element, in contexts, multiples, both
IN_HEAD = (INLINE, INLINE_CONTEXTS, MULTIPLES, MATRIX)
INLINE_BYTES, INLINE_ELEMENTS = 1 << 10, FEW  # of a tensor whose data stand in the head; with contexts only the elements count
_FLOAT = 1


def levels_of(raw: bytes, shape: tuple[int, ...]) -> tuple[float, Symbols] | None:
    """(step, its multiples as int8) of the floats of a matrix; None if they are none."""
    found = step_of(raw)
    if found is None or np.abs(found[1]).max() > np.iinfo(np.int8).max:
        return None
    return found[0], found[1].astype(np.int8).reshape(shape)


def code_data(values: Structure, tensor: Tensor, number: int, raw: bytes | None) -> bytes:
    """Code the data of a tensor in the stream of the head, or read them."""
    by_contexts = number in (INLINE_CONTEXTS, MATRIX)
    if tensor.length > INLINE_BYTES and (not by_contexts or math.prod(tensor.shape) > INLINE_ELEMENTS):
        raise ValueError(f'tensor "{tensor.name}" is too large for the head')
    if not tensor.length:
        return b""
    if number == INLINE_CONTEXTS:
        bits, dtype = tensor.integers or (8, tensor.dtype)
        if dtype.name not in ("int8", "uint8"):
            raise ValueError(f'tensor "{tensor.name}" has a codec for integers of 8 bits')
        shape = tensor.stored_shape if tensor.integers is None else tensor.shape
        found: Symbols = in_stream(values.coder, None if raw is None else tensor.array(raw), shape, dtype)
        return found.tobytes() if tensor.integers is None else narrowed(found, bits)
    if number == MULTIPLES:
        return _code_multiples(values, tensor, raw)
    if number == MATRIX:
        return _code_matrix(values, tensor, raw)
    whole = tensor.dtype.name in ("int32", "int64")
    size, parts, before = tensor.dtype.itemsize, [b""], 0
    for at in range(0, tensor.length, size):
        given = None if raw is None else raw[at : at + size]
        if whole:
            value = None if given is None else _zigzag(int.from_bytes(given, "little", signed=True))
            before = values.number(value, size, [(), before])
            if before >= 1 << 8 * size:
                raise ValueError(f'an element of tensor "{tensor.name}" does not fit its type')
            parts.append(_unzigzag(before).to_bytes(size, "little", signed=True))
        else:
            parts.append(values.element(given, size, size, parts[-1]))
    return b"".join(parts)


def _code_matrix(values: Structure, tensor: Tensor, raw: bytes | None) -> bytes:
    """Code the step of the floats, and the integers by which it is multiplied, in contexts."""
    if tensor.kind != _FLOAT:
        raise ValueError(f'tensor "{tensor.name}" has a codec for float32')
    given = None if raw is None else levels_of(raw, tensor.shape)
    step = values.element(None if given is None else struct.pack("<f", given[0]), 4, "step")
    levels = in_stream(values.coder, None if given is None else given[1], tensor.shape, np.dtype(np.int8))
    return multiples_of(struct.unpack("<f", step)[0], levels.reshape(-1).astype(np.int64))


def _code_multiples(values: Structure, tensor: Tensor, raw: bytes | None) -> bytes:
    """Code the step of the floats, and the integers by which it is multiplied."""
    if tensor.kind != _FLOAT:
        raise ValueError(f'tensor "{tensor.name}" has a codec for float32')
    given = None if raw is None else step_of(raw)
    step = values.element(None if given is None else struct.pack("<f", given[0]), 4, "step")
    integers, before = np.zeros(math.prod(tensor.shape), np.int64), 0
    for place in range(len(integers)):
        value = None if given is None else int(given[1][place])
        following = _zigzag(before + 1)
        found = values.number(None if value is None else _zigzag(value), "multiple", [(), before], (following,))
        before = _unzigzag(found)
        if abs(before) > MOST_STEPS:
            raise ValueError(f'an element of tensor "{tensor.name}" is too many steps')
        integers[place] = before
    return multiples_of(struct.unpack("<f", step)[0], integers)


def _zigzag(value: int) -> int:
    return 2 * value if value >= 0 else -2 * value - 1


def _unzigzag(value: int) -> int:
    return value // 2 if value % 2 == 0 else -(value + 1) // 2
