"""Protobuf messages of an ONNX model as lists of fields, without the classes of a library, whose versions know other fields.

A field is (tag, value). A tag is number · 8 + kind; the kind of a value is 0 for an integer, 1 for eight bytes, 2 for a string
or a message, 5 for four bytes.
"""

from __future__ import annotations

from typing import Any

from mirabelle.codecs.varint import write_varints

Fields = list[tuple[int, Any]]  # (tag, int | bytes | Fields)

INTEGER, EIGHT, MEASURED, FOUR = 0, 1, 2, 5
SIZES = {EIGHT: 8, FOUR: 4}
MODEL, GRAPH, NODE, ATTRIBUTE, TENSOR, VALUE, TYPE, TENSOR_TYPE, SHAPE, DIMENSION, OPSET, ENTRY = range(12)
GRAPH_FIELD, METADATA_FIELD = 7, 14  # of a model
TENSOR_FIELD = 5  # of a graph
# (kind of message, number of a field) -> kind of the message that the field holds.
MESSAGES = {
    (MODEL, GRAPH_FIELD): GRAPH,
    (MODEL, 8): OPSET,
    (MODEL, METADATA_FIELD): ENTRY,
    (GRAPH, 1): NODE,
    (GRAPH, TENSOR_FIELD): TENSOR,
    (GRAPH, 11): VALUE,
    (GRAPH, 12): VALUE,
    (GRAPH, 13): VALUE,
    (NODE, 5): ATTRIBUTE,
    (ATTRIBUTE, 5): TENSOR,
    (ATTRIBUTE, 6): GRAPH,
    (VALUE, 2): TYPE,
    (TYPE, 1): TENSOR_TYPE,
    (TENSOR_TYPE, 2): SHAPE,
    (SHAPE, 1): DIMENSION,
}
_KINDS = 8
_MORE, _MOST_BITS = 0x80, 70
_MOST_NUMBERS, _MOST_INTEGER = 1 << 29, 1 << 64
_DEEPEST = 24  # messages in each other


def kind_of(tag: int) -> int:
    return tag % _KINDS


def number_of(tag: int) -> int:
    return tag // _KINDS


def check_field(tag: int, value: Any) -> None:
    """Raise ValueError for a field that protobuf does not read: without a number, or with more than 64 bits."""
    if not 0 < number_of(tag) < _MOST_NUMBERS or (isinstance(value, int) and value >= _MOST_INTEGER):
        raise ValueError("a field has an impossible number or value")


def fields_of(data: bytes, message: int = MODEL, depth: int = 0) -> Fields:
    """The fields of a message, in their order.

    Raises:
        ValueError: if these bytes are not a message.
    """
    if depth > _DEEPEST:
        raise ValueError("messages lie too deep in each other")
    found: Fields = []
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = kind_of(tag)
        if kind == INTEGER:
            value, at = _varint(data, at)
            check_field(tag, value)
            found.append((tag, value))
            continue
        if kind == MEASURED:
            length, at = _varint(data, at)
        elif kind in SIZES:
            length = SIZES[kind]
        else:
            raise ValueError(f"a field has the unknown kind {kind}")
        content, at = data[at : at + length], at + length
        if at > len(data):
            raise ValueError("a message ends too early")
        check_field(tag, content)
        inner = MESSAGES.get((message, number_of(tag))) if kind == MEASURED else None
        found.append((tag, content if inner is None else fields_of(content, inner, depth + 1)))
    return found


def bytes_of(fields: Fields) -> bytes:
    """The message that has these fields, in this order.

    Example:
        >>> bytes_of(fields_of(bytes.fromhex("080a2a0161"), ENTRY)).hex()
        '080a2a0161'
    """
    parts: list[bytes] = []
    for tag, value in fields:
        if kind_of(tag) == INTEGER:
            parts.append(write_varints([tag, value]))
            continue
        content = bytes_of(value) if isinstance(value, list) else value
        parts.append(write_varints([tag, len(content)] if kind_of(tag) == MEASURED else [tag]) + content)
    return b"".join(parts)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < _MOST_BITS and at < len(data):
        byte = data[at]
        value |= byte % _MORE << shift
        at += 1
        if byte < _MORE:
            return value, at
        shift += 7
    raise ValueError("an integer has no end")
