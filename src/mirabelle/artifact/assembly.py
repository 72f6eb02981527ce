"""The bytes of an ONNX model from its graph and the data of its tensors, one tensor after another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

from mirabelle.artifact.wire import GRAPH_FIELD, MEASURED, METADATA_FIELD, TENSOR_FIELD, Fields, bytes_of, number_of
from mirabelle.codecs.varint import write_varints
from mirabelle.runtime.seal import SEAL, ZEROS

_DATA = 9  # field of a tensor
_TAG = 8


def assembled(
    fields: Fields, data: Callable[[int], bytes | memoryview], lengths: Sequence[int]
) -> Iterator[bytes | memoryview]:
    """The bytes of a model in parts; what follows the tensors is the last part.

    Args:
        fields: the model without the data of its tensors.
        data: of the tensor at a place.
        lengths: bytes of the data of each.
    """
    before, graph, after = _around_graph(fields)
    heads = [_tensor_head(value, length) for value, length in zip(_tensors(graph), lengths, strict=True)]
    inner = (
        [one for one in graph if number_of(one[0]) < TENSOR_FIELD],
        [one for one in graph if number_of(one[0]) > TENSOR_FIELD],
    )
    size = sum(len(bytes_of(part)) for part in inner) + sum(
        len(front) + length + len(end) for (front, end), length in zip(heads, lengths, strict=True)
    )
    yield bytes_of(before) + (_measured(GRAPH_FIELD, size) if graph else b"") + bytes_of(inner[0])
    for place, (front, end) in enumerate(heads):
        yield front
        yield data(place)
        yield end
    yield bytes_of(inner[1]) + bytes_of(after)


def assembled_length(fields: Fields, lengths: Sequence[int]) -> int:
    """Bytes of the model."""
    return sum(map(len, assembled(fields, lambda _: b"", lengths))) + sum(lengths)


def with_zeros(fields: Fields) -> Fields | None:
    """The model with zeros in the place of the digest in its metadata; None if it has none."""
    entry = _digest_entry(fields)
    if entry is None:
        return None
    return [*fields[:-1], (fields[-1][0], [entry[0], (entry[1][0], ZEROS)])]


def with_digest(last: bytes, digest: str) -> bytes:
    """The last part of a model whose digest is zeros, with the digest."""
    return last[: -len(ZEROS)] + digest.encode()


def is_sealed(fields: Fields, zeros: Fields, data: Sequence[bytes | memoryview]) -> bool:
    """Whether the digest in the metadata of a model is that of its bytes with zeros in its place."""
    found = hashlib.blake2b(digest_size=len(ZEROS) // 2)
    for part in assembled(zeros, data.__getitem__, [len(one) for one in data]):
        found.update(part)
    return bool(fields[-1][1][1][1] == found.hexdigest().encode())


def _digest_entry(fields: Fields) -> Fields | None:
    """The last entry of the metadata, if it is the digest, and nothing follows it."""
    tag, value = fields[-1] if fields else (0, b"")
    if number_of(tag) != METADATA_FIELD or not isinstance(value, list):
        return None
    texts = [text for _, text in value if isinstance(text, bytes)]
    return (
        value
        if texts[:1] == [SEAL.encode()] and [len(text) for text in texts[1:]] == [len(ZEROS)] and len(value) == len(texts)
        else None
    )


def _around_graph(fields: Fields) -> tuple[Fields, Fields, Fields]:
    """(fields before the graph, the graph, fields after it)."""
    place = next((k for k, (tag, _) in enumerate(fields) if number_of(tag) == GRAPH_FIELD), None)
    if place is None:
        return [], [], fields
    return fields[:place], fields[place][1], fields[place + 1 :]


def _tensors(graph: Fields) -> list[Fields]:
    return [value for tag, value in graph if number_of(tag) == TENSOR_FIELD]


def _tensor_head(tensor: Fields, length: int) -> tuple[bytes, bytes]:
    """What stands before and after the data of a tensor."""
    front = bytes_of([one for one in tensor if number_of(one[0]) < _DATA]) + _measured(_DATA, length)
    end = bytes_of([one for one in tensor if number_of(one[0]) > _DATA])
    return _measured(TENSOR_FIELD, len(front) + length + len(end)) + front, end


def _measured(number: int, length: int) -> bytes:
    return write_varints([number * _TAG + MEASURED, length])
