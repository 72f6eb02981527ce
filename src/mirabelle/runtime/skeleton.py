"""An ONNX file without the values of its tensors, read from its bytes without a copy of them; and the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from google.protobuf.message import DecodeError, Message
from onnx import GraphProto, ModelProto, TensorProto

_GRAPH = ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW = TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number
_VARINT, _WIDE, _MEASURED, _NARROW = 0, 1, 2, 5  # wire types of protobuf
_BYTES = {_WIDE: 8, _NARROW: 4}
_MOST_BYTES = 10  # of a varint
_KINDS = 8
_LOW = 127  # seven bits in each byte of a varint; the eighth says that another byte follows


@dataclass(frozen=True)
class _Field:
    number: int
    kind: int
    whole: memoryview  # with tag and length
    value: memoryview


def split(onnx: bytes) -> tuple[bytes, list[memoryview]]:
    """(the model without the raw data of its initializers, the raw data of each).

    Raises:
        ValueError: if the file is damaged, or if protobuf would write its model, graph or initializers in another way: fields
            in another order, one that is given twice, lengths with needless bytes. All other messages are not checked.
    """
    raws: list[memoryview] = []
    parts: list[bytes | memoryview] = []
    graphs = 0
    for field in _ordered(memoryview(onnx), ModelProto):
        if field.number != _GRAPH:
            parts.append(field.whole)
            continue
        graphs += 1
        inner = [
            _without_raw(member, raws) if member.number == _INITIALIZER else member.whole
            for member in _ordered(field.value, GraphProto)
        ]
        parts.append(_measured(_GRAPH, b"".join(inner)))
    if graphs > 1:
        raise ValueError("it has two graphs")
    return b"".join(parts), raws


def written(model: ModelProto) -> BytesIO:
    """The bytes of a model as protobuf writes them, tensor by tensor: no more than one is in memory twice at a time.

    The initializers are taken out of the model.
    """
    tensors = [model.graph.initializer.pop() for _ in range(len(model.graph.initializer))][::-1]
    sizes = [tensor.ByteSize() for tensor in tensors]
    heads = [_as_varint(_INITIALIZER * _KINDS + _MEASURED) + _as_varint(size) for size in sizes]
    out = BytesIO()
    for field in _fields(memoryview(model.SerializeToString(deterministic=True))):
        if field.number != _GRAPH:
            out.write(field.whole)
            continue
        members = list(_fields(field.value))
        out.write(_as_varint(_GRAPH * _KINDS + _MEASURED))
        out.write(_as_varint(len(field.value) + sum(sizes) + sum(map(len, heads))))
        out.writelines(member.whole for member in members if member.number < _INITIALIZER)
        for head, tensor in zip(heads, tensors, strict=True):
            out.write(head)
            out.write(tensor.SerializeToString(deterministic=True))
        out.writelines(member.whole for member in members if member.number > _INITIALIZER)
    return out


def without_data(onnx: bytes) -> ModelProto | None:
    """The model without the raw data of its initializers, of which no copy is made; None if it is not written plainly."""
    try:
        model: ModelProto = ModelProto.FromString(split(onnx)[0])
    except (ValueError, DecodeError):
        return None
    return model


def is_plain(onnx: bytes) -> bool:
    """Whether protobuf writes a model in these very bytes."""
    try:
        skeleton, _ = split(onnx)
        return bool(ModelProto.FromString(skeleton).SerializeToString(deterministic=True) == skeleton)
    except (ValueError, DecodeError):
        return False


def _without_raw(tensor: _Field, raws: list[memoryview]) -> bytes:
    fields = list(_ordered(tensor.value, TensorProto))
    own = [field.value for field in fields if field.number == _RAW]
    if len(own) > 1:
        raise ValueError("a tensor has its data twice")
    raws.append(own[0] if own else memoryview(b""))
    return _measured(_INITIALIZER, b"".join(field.whole for field in fields if field.number != _RAW))


def _measured(number: int, content: bytes) -> bytes:
    return _as_varint(number * _KINDS + _MEASURED) + _as_varint(len(content)) + content


def _as_varint(value: int) -> bytes:
    found = bytearray()
    while value > _LOW:
        found.append(value & _LOW | _LOW + 1)
        value >>= 7
    return bytes([*found, value])


def _ordered(data: memoryview, kind: type[Message]) -> Iterator[_Field]:
    """The fields of a message in the order in which protobuf writes them: by number, unknown ones last."""
    known = kind.DESCRIPTOR.fields_by_number
    before = (False, 0)
    for field in _fields(data):
        place = (field.number not in known, field.number if field.number in known else 0)
        if place < before:
            raise ValueError("its fields are not in order")
        before = place
        yield field


def _fields(data: memoryview) -> Iterator[_Field]:
    at = 0
    while at < len(data):
        begin = at
        tag, at = _varint(data, at)
        kind = tag % _KINDS
        if kind == _VARINT:
            start, (_, at) = at, _varint(data, at)
        elif kind == _MEASURED:
            length, start = _varint(data, at)
            at = start + length
        elif kind in _BYTES:
            start, at = at, at + _BYTES[kind]
        else:
            raise ValueError(f"it has a field of the unknown kind {kind}")
        if at > len(data):
            raise ValueError("it ends too early")
        yield _Field(tag // _KINDS, kind, data[begin:at], data[start:at])


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """(value, where it ends) of an integer that has no needless bytes."""
    value = 0
    for k in range(_MOST_BYTES):
        if at + k >= len(data):
            raise ValueError("it ends too early")
        byte = data[at + k]
        value |= (byte & _LOW) << (7 * k)
        if byte <= _LOW:
            if k and not byte:
                raise ValueError("an integer has needless bytes")
            return value, at + k + 1
    raise ValueError("an integer is longer than ten bytes")
