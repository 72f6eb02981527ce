"""A second decoder of .mira, version 1, written from docs/mira.md alone.

It shares with the first one only the two constants that the page names. It is made to be read, not to be fast or frugal, and
takes a file at its word once the digest is right.
"""

from __future__ import annotations

import functools
import hashlib
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mirabelle.artifact.head import DICTIONARY
from mirabelle.artifact.primer import PRIMER

Value: TypeAlias = "int | bytes | list[tuple[int, Value]]"
Fields: TypeAlias = list[tuple[int, Value]]
Array: TypeAlias = NDArray[np.generic]

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _VALUE, _TYPE, _TENSOR_TYPE, _SHAPE, _DIMENSION, _OPERATORS, _ENTRY = range(12)
_MESSAGES = {
    (_MODEL, 7): _GRAPH, (_MODEL, 8): _OPERATORS, (_MODEL, 14): _ENTRY, (_GRAPH, 1): _NODE, (_GRAPH, 5): _TENSOR,
    (_GRAPH, 11): _VALUE, (_GRAPH, 12): _VALUE, (_GRAPH, 13): _VALUE, (_NODE, 5): _ATTRIBUTE, (_ATTRIBUTE, 5): _TENSOR,
    (_ATTRIBUTE, 6): _GRAPH, (_VALUE, 2): _TYPE, (_TYPE, 1): _TENSOR_TYPE, (_TENSOR_TYPE, 2): _SHAPE, (_SHAPE, 1): _DIMENSION,
}  # fmt: skip
_CODED_FIRST = {_GRAPH: 11, _NODE: 4, _TENSOR: 8}
_DTYPES = {
    1: "f4", 11: "f8", 10: "f2", 2: "u1", 4: "u2", 12: "u4", 13: "u8", 3: "i1", 5: "i2", 6: "i4", 7: "i8", 9: "?", 14: "c8",
    15: "c16", 16: "u2", 17: "u1", 18: "u1", 19: "u1", 20: "u1", 24: "u1", 21: "u1", 22: "u1", 23: "u1", 25: "u1", 26: "u1",
}  # fmt: skip
_BITS = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2}
_SINGLES = {21: "u1", 22: "i1", 25: "u1", 26: "i1"}
_KNOTS = (
    1, 2, 4, 6, 10, 17, 27, 45, 74, 120, 194, 311, 488, 747, 1102, 1546, 2048, 2550, 2994, 3349, 3608, 3785, 3902, 3976, 4022,
    4051, 4069, 4079, 4086, 4090, 4092, 4094, 4095,
)  # fmt: skip
_PRIMER_TYPES = {"float": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "uint4": 21, "int4": 22, "uint2": 25}


def decode(data: bytes) -> bytes:
    """The ONNX file that a .mira file of version 1 holds; ValueError if it is not one, or its digest is wrong."""
    if data[:5] != b"MIRA\x01" or hashlib.blake2b(data[21:], digest_size=16).digest() != data[5:21]:
        raise ValueError("not a .mira file of version 1, or damaged")
    reader = _Reader(data[21:])
    head = _Reader(reader.take(reader.varint()))
    if head.varint() == 1:
        fields, sealed, entries = _deflated_head(head)
    else:
        fields, sealed, entries = _mixed_head(head.rest())
    tensors = _tensors(fields)
    for entry in entries:
        entry.body = reader.take(entry.length)
    contents = [_content(tensor, entry) for tensor, entry in zip(tensors, entries, strict=True)]
    for place, entry in enumerate(entries):
        if entry.number == 10:
            one, other = (np.frombuffer(contents[factor], "<f4") for factor in entry.factors)
            contents[place] = (one[0] * other).astype("<f4").tobytes()
    for tensor, content in zip(tensors, contents, strict=True):
        behind = next((at for at, (tag, _) in enumerate(tensor) if tag >> 3 > 9), len(tensor))
        tensor.insert(behind, (9 << 3 | 2, content))
    onnx = _message(fields)
    if not sealed:
        return onnx
    return onnx[:-16] + hashlib.blake2b(onnx, digest_size=8).hexdigest().encode()


# ---------------------------------------------------------------- bytes and messages


class _Reader:
    """Bytes that are read from the front."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, length: int) -> bytes:
        self._at += length
        if self._at > len(self._data):
            raise ValueError("the file ends too early")
        return self._data[self._at - length : self._at]

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self.take(1)[0]
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def __bool__(self) -> bool:
        return self._at < len(self._data)


def _unzigzag(number: int) -> int:
    return -(number >> 1) - 1 if number & 1 else number >> 1


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _message(fields: Fields) -> bytes:
    parts = []
    for tag, value in fields:
        if isinstance(value, int):
            parts += [_varint(tag), _varint(value)]
        elif tag & 7 == 2:
            content = value if isinstance(value, bytes) else _message(value)
            parts += [_varint(tag), _varint(len(content)), content]
        else:
            assert isinstance(value, bytes)
            parts += [_varint(tag), value]
    return b"".join(parts)


def _fields(data: bytes, message: int) -> Fields:
    reader, fields = _Reader(data), Fields()
    while reader:
        tag = reader.varint()
        kind, inner = tag & 7, _MESSAGES.get((message, tag >> 3))
        if kind == 0:
            fields.append((tag, reader.varint()))
        elif kind == 2:
            content = reader.take(reader.varint())
            fields.append((tag, content if inner is None else _fields(content, inner)))
        else:
            fields.append((tag, reader.take(8 if kind == 1 else 4)))
    return fields


def _inner(fields: Fields, tag: int) -> list[Fields]:
    return [value for each, value in fields if each == tag and isinstance(value, list)]


def _tensors(model: Fields) -> list[Fields]:
    return [tensor for graph in _inner(model, 7 << 3 | 2) for tensor in _inner(graph, 5 << 3 | 2)]


def _shape(tensor: Fields) -> list[int]:
    return [value for tag, value in tensor if tag == 1 << 3 and isinstance(value, int)]


def _kind(tensor: Fields) -> int:
    return next(value for tag, value in tensor if tag == 2 << 3 and isinstance(value, int))


def _name(tensor: Fields) -> bytes:
    return next((value for tag, value in tensor if tag == 8 << 3 | 2 and isinstance(value, bytes)), b"")


# ---------------------------------------------------------------- mixing of contexts


def _squash(x: int) -> int:
    i, r = divmod(max(-2047, min(2047, x)) + 2048, 128)
    return (_KNOTS[i] * (128 - r) + _KNOTS[i + 1] * r + 64) >> 7


def _stretches() -> list[int]:
    table, x = [], -2047
    for p in range(4096):
        while x < 2047 and _squash(x) < p:
            x += 1
        table.append(x)
    return table


_STRETCH = _stretches()
_RATES = [131072 // (2 * n + 3) for n in range(256)]


class _Stream:
    """The arithmetic decoder of a stream of bits."""

    def __init__(self, data: bytes) -> None:
        self._low, self._high, self._value = 0, 0xFFFFFFFF, int.from_bytes(data[:4].ljust(4, b"\0"), "big")
        self._rest = iter(data[4:])

    def bit(self, probability: int) -> int:
        middle = self._low + ((self._high - self._low) >> 12) * probability
        bit = int(self._value <= middle)
        if bit:
            self._high = middle
        else:
            self._low = middle + 1
        while (self._low ^ self._high) >> 24 == 0:
            self._low = self._low << 8 & 0xFFFFFFFF
            self._high = self._high << 8 & 0xFFFFFFFF | 255
            self._value = self._value << 8 & 0xFFFFFFFF | next(self._rest, 0)
        return bit


class _Model:
    """Counters and mixers; `known`, wherever it stands, is what is learned without a stream."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._counters: dict[Hashable, list[int]] = {}
        self._mixers: dict[Hashable, list[int]] = {}

    def for_stream(self, stream: _Stream) -> _Model:
        """A copy that goes on with this stream."""
        model = _Model(stream)
        model._counters = {context: list(counter) for context, counter in self._counters.items()}
        model._mixers = {name: list(weights) for name, weights in self._mixers.items()}
        return model

    def bit(self, contexts: Sequence[Hashable], mixer: Hashable, known: int | None = None) -> int:
        counters = [self._counters.setdefault(context, [32768, 0]) for context in contexts]
        weights = self._mixers.setdefault(mixer, [4 * 65536 // (3 * len(contexts))] * len(contexts))
        inputs = [_STRETCH[counter[0] >> 4] for counter in counters]
        probability = _squash(sum(w * x for w, x in zip(weights, inputs, strict=True)) >> 16)
        bit = self._stream.bit(probability) if known is None else known
        error = (4096 * bit - probability) * 6
        for at, x in enumerate(inputs):
            weights[at] += (x * error + 8192) >> 14
        for counter in counters:
            counter[0] += ((65535 * bit - counter[0]) * _RATES[counter[1]]) >> 16
            counter[1] = min(counter[1] + 1, 255)
        return bit

    def number(
        self, place: Hashable, contexts: Sequence[Hashable], guesses: Sequence[int | None] = (), known: int | None = None
    ) -> int:
        def bits(number: int, lows: Iterable[int], wanted: int | None, guessed: list[int | None], sign: int) -> int:
            for low in lows:
                node = (low if sign else -1 - low, number)
                hints = [None if g is None or g >> (low + 1) != number else g >> low & 1 for g in guessed]
                all_contexts = [
                    *((place, context, node) for context in contexts),
                    *((place, k, g) for k, g in enumerate(hints)),
                ]
                mixer = (place, 1 - sign)
                number = number << 1 | self.bit(all_contexts, mixer, None if wanted is None else wanted >> low & 1)
            return number

        lengths = [None if guess is None else guess.bit_length() for guess in guesses]
        length = bits(0, range(6, -1, -1), None if known is None else known.bit_length(), lengths, 0)
        return length if length < 2 else bits(1, range(length - 2, -1, -1), known, list(guesses), 1)

    def byte(self, contexts: Sequence[Hashable], mixer: Hashable, known: int | None = None) -> int:
        node = 1
        for low in range(7, -1, -1):
            bit = self.bit([(context, node) for context in contexts], mixer, None if known is None else known >> low & 1)
            node = 2 * node + bit
        return node % 256

    def element(self, size: int, place: Hashable, before: bytes = b"", known: bytes | None = None) -> bytes:
        found = b""
        for at in range(size - 1, -1, -1):
            near = (place, at, "near", before[at : at + 1], found[-1:])
            found = bytes([self.byte([(place, at), (place, at, found), near], "element", known[at] if known else None)]) + found
        return found

    def text(
        self, place: Hashable, contexts: Sequence[Hashable], guesses: Iterable[bytes], known: bytes | None = None
    ) -> bytes:
        tried = list(dict.fromkeys(filter(None, guesses)))
        for k, guess in enumerate(tried):
            is_it = [(place, "is", k), *((place, "is", k, context) for context in contexts)]
            if self.bit(is_it, (place, "is", len(is_it)), None if known is None else int(known == guess)):
                return guess
        found = b""
        while True:
            keys = [
                (place, found[-24:]),
                *((place, context, found[-24:]) for context in contexts),
                *(("last", m, found[-m:]) for m in (1, 2, 3)),
                *(
                    (k, guess[len(found) : len(found) + 1] if guess.startswith(found) else None)
                    for k, guess in enumerate(tried[:3])
                ),
            ]
            ends = None if known is None else int(found == known)
            if self.bit([("end", key) for key in keys], ("end", len(keys)), ends):
                return found
            letter = self.byte(keys, ("letter", len(keys)), known[len(found)] if known is not None and not ends else None)
            found += bytes([letter])


# ---------------------------------------------------------------- the graph in form 0


def _ending(name: bytes) -> bytes:
    at = max(name.rfind(b"."), name.rfind(b":"))
    return b"" if at < 0 else name[at:]


def _layer(name: bytes) -> bytes:
    return name[: len(name) - len(_ending(name))]


def _following(name: bytes) -> bytes:
    last = re.search(rb"(\d+)(\D*)$", name)
    return name[: last.start()] + b"%d" % (int(last[1]) + 1) + last[2] if last and len(last[1]) <= 18 else b""


def _at(names: Sequence[bytes], place: int) -> bytes:
    return names[place] if -len(names) <= place < len(names) else b""


@dataclass
class _Graph:
    """Codes the messages of a model and keeps what the contexts need."""

    model: _Model
    values: list[bytes] = field(default_factory=list)
    made: set[bytes] = field(default_factory=set)
    unmade: list[bytes] = field(default_factory=list)
    op: bytes = b""
    op1: bytes = b""
    op2: bytes = b""
    inputs: list[bytes] = field(default_factory=list)
    attribute: bytes = b""
    last_layer: bytes = b""
    endings: dict[tuple[bytes, int], bytes] = field(default_factory=dict)
    latest: dict[tuple[bytes, int], bytes] = field(default_factory=dict)
    counts: dict[bytes, int] = field(default_factory=dict)
    part: bytes = b""
    sizes: list[int] = field(default_factory=list)
    matrix: list[int] = field(default_factory=list)

    def fields(self, message: int, known: Fields | None = None) -> Fields:
        if message == _NODE:
            self.op, self.inputs = b"", []
        if message == _TENSOR:
            self.part, self.sizes = b"", []
        first = _CODED_FIRST.get(message, 0)
        queue = None if known is None else [*sorted(known, key=lambda each: (each[0] >> 3 != first, each[0] >> 3)), (0, 0)]
        found: Fields = []
        before = run = 0
        while True:
            tag, value = queue.pop(0) if queue else (None, None)
            contexts = [
                before,
                (before, run, self._subject(message)),
                (before, len(self.sizes)),
                (before, self.op1, self.op),
            ]
            tag = self.model.number(("tag", message), contexts, known=tag)
            if tag == 0:
                break
            run = run + 1 if tag == before else 0
            before = tag
            found.append((tag, self._value(message, tag, run, value)))
        if message == _NODE:
            self.op1, self.op2 = self.op, self.op1
        if message == _TENSOR and len(self.sizes) > 1:
            self.matrix = self.sizes
        return sorted(found, key=lambda each: each[0] >> 3)

    def _subject(self, message: int) -> Hashable:
        return {_ATTRIBUTE: (self.op, self.attribute), _NODE: self.op, _TENSOR: self.part}.get(message, b"")

    def _value(self, message: int, tag: int, run: int, known: Value | None) -> Value:
        place, kind, subject = (message, tag >> 3), tag & 7, self._subject(message)
        if kind == 2 and place in _MESSAGES:
            return self.fields(_MESSAGES[place], known if isinstance(known, list) else None)
        if kind == 0:
            return self._integer(place, run, subject, known if isinstance(known, int) else None)
        wanted = known if isinstance(known, bytes) else None
        if kind == 2:
            contexts, guesses = self._hints(place, run)
            content = self.model.text(place, contexts, guesses, wanted)
        else:
            content = self.model.element(8 if kind == 1 else 4, (place, subject), known=wanted)
        self._learn(place, content)
        return content

    def _integer(self, place: tuple[int, int], run: int, subject: Hashable, known: int | None) -> int:
        if place == (_TENSOR, 1):
            last = self.sizes[-1] if self.sizes else 0
            guesses = [self.matrix[at] if at < len(self.matrix) else None for at in (run, 0)]
            number = self.model.number(place, [(), (self.part, run), (self.part, run, last)], guesses, known)
            self.sizes.append(number)
            return number
        guesses = [self.matrix[0] if self.matrix else None] if place == (_DIMENSION, 1) else []
        return self.model.number(place, [(), (subject,), (subject, run)], guesses, known)

    def _hints(self, place: tuple[int, int], run: int) -> tuple[list[Hashable], list[bytes]]:
        last = _at(self.values, -1)
        if place == (_NODE, 4):
            return [self.op1, (self.op1, self.op2)], []
        if place == (_NODE, 1):
            key = (self.op, run)
            ending, latest = self.endings.get(key, b""), self.latest.get(key, b"")
            return [key, (*key, self.op1)], [
                b"" if last in self.inputs else last,
                _layer(self.inputs[-1] if self.inputs else last) + ending,
                _following(self.last_layer) + ending,
                _at(self.values, -2),
                _following(latest),
                latest,
            ]
        if place == (_NODE, 2):
            layer = _layer(_at([name for name in self.inputs if name in self.unmade] or self.inputs, -1))
            count = b":%d" % self.counts.get(layer, 0)
            latest = self.latest.get((self.op, -1), b"")
            return [self.op], [layer + count, layer, _following(latest), self.op.lower(), b"output"]
        if place == (_TENSOR, 8):
            return [b""], [_at(self.unmade, 0)]
        return ([b""], [last]) if place == (_VALUE, 1) else ([self._subject(place[0])], [])

    def _learn(self, place: tuple[int, int], text: bytes) -> None:
        if place == (_NODE, 4):
            self.op = text
        elif place == (_NODE, 1):
            key = (self.op, len(self.inputs))
            self.endings[key], self.latest[key] = _ending(text), text
            self.inputs.append(text)
            if text not in self.made and text not in self.unmade:
                self.unmade.append(text)
                self.last_layer = _layer(text) if _ending(text).startswith(b".") else self.last_layer
        elif place in ((_NODE, 2), (_VALUE, 1)):
            self.values.append(text)
            self.made.add(text)
            if place == (_NODE, 2):
                self.latest[self.op, -1] = text
                if _ending(text).startswith(b":"):
                    self.counts[_layer(text)] = self.counts.get(_layer(text), 0) + 1
        elif place == (_ATTRIBUTE, 1):
            self.attribute = text
        elif place == (_TENSOR, 8):
            self.part = _ending(text)
            if text in self.unmade:
                self.unmade.remove(text)


@functools.cache
def _taught() -> _Model:
    """A model that has learned from the primer."""
    model = _Model(_Stream(b""))
    _Graph(model).fields(_MODEL, _primer())
    return model


def _primer() -> Fields:
    """The model that the text PRIMER describes."""
    parts: dict[str, Fields] = {"node": [], "tensor": [], "input": [], "output": [], "meta": []}
    for line in PRIMER.strip().splitlines():
        word, rest = line.split(" ", 1)
        if word == "tensor":
            name, kind, *sizes = rest.split(" ")
            dims: Fields = [(1 << 3, int(size)) for size in sizes for size in size.split(",")]
            parts[word].append((5 << 3 | 2, [*dims, (2 << 3, _PRIMER_TYPES[kind]), _text(8, name)]))
        elif word == "meta":
            key, text = rest.split(" ", 1)
            parts[word].append((14 << 3 | 2, [_text(1, key), _text(2, text)]))
        elif word in parts:
            name, sizes_text = rest.split(" ")
            shape: Fields = [
                (1 << 3 | 2, [(1 << 3, int(size)) if size.isdigit() else _text(2, size)]) for size in sizes_text.split(",")
            ]
            tensor: Fields = [(1 << 3, 7 if name in ("input_ids", "attention_mask") else 1), (2 << 3 | 2, shape)]
            parts[word].append(
                ((11 if word == "input" else 12) << 3 | 2, [_text(1, name), (2 << 3 | 2, [(1 << 3 | 2, tensor)])])
            )
        else:
            inputs, after = rest.split(" > ")
            node = [_text(1, name) for name in inputs.split(" ")]
            node += [_text(2, name) for name in after.split(" ") if "=" not in name]
            node += [_text(4, word), *((5 << 3 | 2, _attribute(text)) for text in after.split(" ") if "=" in text)]
            parts["node"].append((1 << 3 | 2, node))
    graph = [*parts["node"], _text(2, "main"), *parts["tensor"], *parts["input"], *parts["output"]]
    operators = (8 << 3 | 2, [_text(1, ""), (2 << 3, 25)])
    return [(1 << 3, 10), _text(2, "mirabelle"), (7 << 3 | 2, graph), operators, *parts["meta"]]


def _text(number: int, text: str) -> tuple[int, Value]:
    return number << 3 | 2, text.encode()


def _attribute(text: str) -> Fields:
    name, value = text.split("=")
    if "," in value:
        return [_text(1, name), *((8 << 3, int(each)) for each in value.split(",")), (20 << 3, 7)]
    if value.lstrip("-").isdigit():
        return [_text(1, name), (3 << 3, int(value) % 2**64), (20 << 3, 2)]
    if value[0].isdigit():
        return [_text(1, name), (2 << 3 | 5, struct.pack("<f", float(value))), (20 << 3, 1)]
    return [_text(1, name), _text(4, value), (20 << 3, 3)]


# ---------------------------------------------------------------- the head


@dataclass
class _Entry:
    number: int
    length: int = 0
    factors: tuple[int, ...] = ()
    body: bytes = b""
    content: bytes | None = None


def _deflated_head(head: _Reader) -> tuple[Fields, bool, list[_Entry]]:
    length = head.varint()
    inflated = zlib.decompressobj(-15, DICTIONARY).decompress(head.rest())
    if len(inflated) != length:
        raise ValueError("the head has another length")
    reader = _Reader(inflated)
    sealed = bool(reader.varint())
    fields, entries = _fields(reader.take(reader.varint()), _MODEL), []
    for _ in _tensors(fields):
        number = reader.varint()
        if number == 10:
            entries.append(_Entry(number, factors=(reader.varint(), reader.varint())))
        else:
            entries.append(_Entry(number, reader.varint()))
    return fields, sealed, entries


def _mixed_head(data: bytes) -> tuple[Fields, bool, list[_Entry]]:
    stream = _Stream(data)
    model, contents = _taught().for_stream(stream), _Model(stream)
    fields = _Graph(model).fields(_MODEL)
    sealed, entries = bool(model.number("sealed", [()])), []
    for tensor in _tensors(fields):
        ending, kind = _name(tensor).rpartition(b".")[2], _kind(tensor)
        entry = _Entry(model.number("codec", [(), ending, kind]))
        if entry.number == 10:
            entry.factors = (model.number("factor", [()]), model.number("factor", [()]))
        elif entry.number == 8:
            entry.content = _in_the_head(contents, tensor)
        elif entry.number == 11:
            entry.content = _multiples(contents, prod(_shape(tensor)))
        elif entry.number == 13:
            step, shape = contents.element(4, "step"), tuple(_shape(tensor))
            largest, stride = _largest_and_stride(_Model(stream))
            levels = _matrix(stream, np.dtype("i1"), shape, largest, stride)
            entry.content = _products(step, levels.ravel().tolist())
        elif entry.number == 9:
            dtype, shape = _symbols(tensor)
            largest, stride = _largest_and_stride(_Model(stream))
            entry.content = _packed(_matrix(stream, dtype, shape, largest, stride).tobytes(), kind)
        else:
            entry.length = model.number("length", [(), ending])
        entries.append(entry)
    return fields, sealed, entries


def _in_the_head(model: _Model, tensor: Fields) -> bytes:
    """Codec 8."""
    kind, content = _kind(tensor), b""
    dtype, shape = _array(tensor)
    before = 0
    for _ in range(prod(shape)):
        if kind in (6, 7):
            before = model.number(dtype.itemsize, [(), before])
            content += _unzigzag(before).to_bytes(dtype.itemsize, "little", signed=True)
        else:
            content += model.element(dtype.itemsize, dtype.itemsize, content[-dtype.itemsize :])
    return content


def _multiples(model: _Model, count: int) -> bytes:
    """Codec 11."""
    step, before, numbers = model.element(4, "step"), 0, []
    for _ in range(count):
        following = 2 * (before + 1) if before >= -1 else -2 * (before + 1) - 1
        before = _unzigzag(model.number("multiple", [(), before], [following]))
        numbers.append(before)
    return _products(step, numbers)


def _products(step: bytes, numbers: Sequence[int]) -> bytes:
    """The products of a step with integers, rounded to bfloat16, as float32."""
    bits = (np.array(numbers, "<f4") * np.frombuffer(step, "<f4")).astype("<f4").view("<u4").astype(np.uint64)
    upper, lower = bits >> np.uint64(16), bits & np.uint64(0xFFFF)
    upper += ((lower > 0x8000) | ((lower == 0x8000) & (upper & np.uint64(1) == 1))).astype(np.uint64)
    return (upper << np.uint64(16)).astype("<u4").tobytes()


def _largest_and_stride(model: _Model) -> tuple[int, int]:
    numbers = []
    for length in (8, 6):
        number = 0
        for low in range(length - 1, -1, -1):
            number = number << 1 | model.bit([(low, number)], "number")
        numbers.append(number)
    return numbers[0], numbers[1] + 1


# ---------------------------------------------------------------- tensors


def _array(tensor: Fields) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
    """Type and shape of the array as which a tensor is coded."""
    kind, shape = _kind(tensor), tuple(_shape(tensor))
    if kind in _BITS:
        shape = (-(-prod(shape) * _BITS[kind] // 8),)
    return np.dtype("<" + _DTYPES[kind]), shape


def _symbols(tensor: Fields) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
    """The same where the elements of a tensor are coded one by one."""
    kind = _kind(tensor)
    return (np.dtype(_SINGLES[kind]), tuple(_shape(tensor))) if kind in _SINGLES else _array(tensor)


def _packed(elements: bytes, kind: int) -> bytes:
    """Elements, one a byte, as bytes of several elements."""
    bits = _BITS[kind] if kind in _SINGLES else 8
    numbers = np.frombuffer(elements, np.uint8)
    numbers = np.pad(numbers, (0, -len(numbers) % (8 // bits))).reshape(-1, 8 // bits) & (2**bits - 1)
    content: bytes = (numbers << np.arange(0, 8, bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8).tobytes()
    return content


def _content(tensor: Fields, entry: _Entry) -> bytes:
    if entry.content is not None or entry.number == 10:
        return entry.content or b""
    if entry.number < 64:
        return _decoded(entry.number, entry.body, *_array(tensor)).tobytes()
    return _packed(_decoded(entry.number - 64, entry.body, *_symbols(tensor)).tobytes(), _kind(tensor))


def _decoded(number: int, body: bytes, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    if prod(shape) == 0:
        return np.zeros(shape, dtype)
    codecs: dict[int, Callable[[_Reader, np.dtype[np.generic], tuple[int, ...]], Array]] = {
        0: lambda reader, dtype, shape: np.frombuffer(reader.rest(), dtype).reshape(shape),
        1: lambda reader, dtype, shape: np.frombuffer(zlib.decompress(reader.rest(), -15), dtype).reshape(shape),
        2: _histogram,
        3: _planes,
        4: lambda reader, dtype, shape: _sparse(reader, dtype, shape, 2),
        5: lambda reader, dtype, shape: _sparse(reader, dtype, shape, 3),
        6: _contexts,
        7: _palette,
        12: _interleaved,
    }
    if number not in codecs:
        raise ValueError(f"unknown codec {number}")
    return codecs[number](_Reader(body), dtype, shape)


def _histogram(reader: _Reader, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    lowest, kinds = _unzigzag(reader.varint()), reader.varint()
    if kinds == 1:
        return np.full(shape, lowest).astype(dtype)
    length = reader.varint()
    counts = _counts(_Model(_Stream(reader.take(length))), kinds) if length else [reader.varint() for _ in range(kinds)]
    lefts, coder = _categorical(counts), _RangeDecoder(reader.rest())
    return np.array([lowest + coder.symbol(lefts) for _ in range(prod(shape))]).astype(dtype).reshape(shape)


def _interleaved(reader: _Reader, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    lowest, kinds = _unzigzag(reader.varint()), reader.varint()
    if kinds == 1:
        return np.full(shape, lowest).astype(dtype)
    length = reader.varint()
    counts = _counts(_Model(_Stream(reader.take(length))), kinds) if length else [reader.varint() for _ in range(kinds)]
    frequencies = [max(count * 2**16 // sum(counts), count > 0) for count in counts]
    frequencies[counts.index(max(counts))] += 2**16 - sum(frequencies)
    if sum(count > 0 for count in counts) < 2:
        raise ValueError("a single symbol")
    starts = [sum(frequencies[:symbol]) for symbol in range(kinds)]
    states = [int.from_bytes(reader.take(4), "little") for _ in range(reader.varint())]
    symbols = []
    for i in range(prod(shape)):
        lane = i % len(states)
        high, slot = divmod(states[lane], 2**16)
        symbol = bisect_right(starts, slot) - 1
        state = frequencies[symbol] * high + slot - starts[symbol]
        states[lane] = state if state >= 2**16 else state << 16 | int.from_bytes(reader.take(2), "little")
        symbols.append(lowest + symbol)
    if reader or set(states) != {2**16}:
        raise ValueError("the words do not end where the symbols do")
    return np.array(symbols).astype(dtype).reshape(shape)


def _counts(model: _Model, kinds: int) -> list[int]:
    """The table of a histogram that is a stream of bits."""
    significant = 0
    for low in (2, 1, 0):
        significant = significant << 1 | model.bit([("significant", low, significant)], "significant")
    counts: list[int] = []
    one = two = 0
    for _ in range(kinds):
        length = 0
        for low in (4, 3, 2, 1, 0):
            node = (low, length)
            length = length << 1 | model.bit([("length", node), ("one", one, node), ("two", one, two, node)], "")
        count = min(length, 1)
        for low in range(length - 2, -1, -1):
            if length - low > significant:
                count <<= 1
            else:
                count = count << 1 | model.bit([("bit", length - low, count), ("of", length, count)], "bit")
        counts.append(count)
        one, two = length, one
    return counts


def _planes(reader: _Reader, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    planes = []
    for _ in range(dtype.itemsize):
        codec, part = {0: 0, 1: 2, 2: 12}[reader.varint()], reader.take(reader.varint())
        planes.append(_decoded(codec, part, np.dtype("u1"), (prod(shape),)))
    return np.frombuffer(np.stack(planes, axis=1).tobytes(), dtype).reshape(shape)


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """The shape of the matrix of an array."""
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))


def _sparse(reader: _Reader, dtype: np.dtype[np.generic], shape: tuple[int, ...], inner: int) -> Array:
    classes = [_decoded(2, reader.take(reader.varint()), np.dtype("u1"), (length,)) for length in _rows(shape)]
    table, positions = _Reader(reader.take(reader.varint())), _RangeDecoder(reader.take(reader.varint()))
    is_set = np.zeros(_rows(shape), bool)
    for one in range(1, 8):
        for other in range(1, 8):
            rows, columns = (np.flatnonzero(each == kind) for each, kind in zip(classes, (one, other), strict=True))
            if not len(rows) or not len(columns):
                continue
            share = table.varint()
            lefts = _bernoulli(share)
            for row in rows:
                for column in columns:
                    is_set[row, column] = share == 256 or (share > 0 and positions.symbol(lefts))
    matrix = np.zeros(_rows(shape), dtype)
    count = reader.varint()
    matrix[is_set] = _decoded(inner, reader.rest(), dtype, (count,))
    return matrix.reshape(shape)


def _palette(reader: _Reader, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    count = reader.varint()
    if count == 0:
        return np.frombuffer(reader.rest(), dtype).reshape(shape)
    stored, choice = reader.varint(), reader.varint()
    table = b"".join(bytes(dtype.itemsize - stored) + reader.take(stored) for _ in range(count))
    places = _decoded((2, 4, 6)[choice], reader.rest(), np.dtype("u1"), shape)
    return np.frombuffer(table, dtype)[places.astype(np.intp)]


def _contexts(reader: _Reader, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    largest, stride = reader.varint(), reader.varint()
    return _matrix(_Stream(reader.rest()), dtype, shape, largest, stride)


# ---------------------------------------------------------------- contexts of a matrix


def _flags(stream: _Stream, count: int, stride: int) -> list[int]:
    """The places of those rows or columns that have an element that is not 0."""
    model, flags = _Model(stream), [0] * (stride + 2)
    for _ in range(count):
        one, two = flags[-1], flags[-2]
        far = (flags[-stride], flags[1 - stride] if stride > 1 else 0, flags[-stride - 1])
        flags.append(model.bit(["", ("near", one, two), ("far", *far), ("all", one, two, *far)], ""))
    return [place for place, flag in enumerate(flags[stride + 2 :]) if flag]


def _share(count: int, of: int) -> int:
    return ((64 * count + 25) // (of + 2)).bit_length()


def _matrix(stream: _Stream, dtype: np.dtype[np.generic], shape: tuple[int, ...], largest: int, stride: int) -> Array:
    matrix = np.zeros(_rows(shape), np.int64)
    if largest == 0:
        return matrix.astype(dtype).reshape(shape)
    rows, columns = _flags(stream, matrix.shape[0], 1), _flags(stream, matrix.shape[1], stride)
    places, values = _Model(stream), _Model(stream)
    value_of = _signed if dtype.kind == "i" else _unsigned
    in_row, left, two_left = [0] * len(rows), [0] * len(rows), [0] * len(rows)
    for place, column in enumerate(columns):
        in_column, current = 0, [0] * len(rows)
        for i, row in enumerate(rows):
            one, two, above = int(left[i] != 0), int(two_left[i] != 0), int(i > 0 and current[i - 1] != 0)
            row_share, column_share = _share(in_row[i], place), _share(in_column, i)
            contexts = [
                ("row", i), ("column", place), ("shares", row_share, column_share), ("around", one + 2 * two + 4 * above),
                ("row share", row_share, one), ("column share", column_share, above),
            ]  # fmt: skip
            if places.bit(contexts, ""):
                current[i] = matrix[row, column] = value_of(values, i, left[i], largest)
                in_row[i] += 1
                in_column += 1
        left, two_left = current, left
    return matrix.astype(dtype).reshape(shape)


def _signed(model: _Model, i: int, left: int, largest: int) -> int:
    m = 1
    while m < largest and model.bit([("more", min(m, 12)), ("row more", i, min(m, 3))], min(m, 3)):
        m += 1
    sign = (left > 0) - (left < 0)
    return -m if model.bit(["sign", ("row sign", i), ("left sign", sign)], "sign") else m


def _unsigned(model: _Model, i: int, left: int, largest: int) -> int:
    found = 0
    for bit in range((largest - 1).bit_length() - 1, -1, -1):
        node = (bit, found)
        found = found << 1 | model.bit([("bit", node), ("row bit", i, node), ("left bit", left, node)], bit)
    return found + 1


# ---------------------------------------------------------------- range coder


class _RangeDecoder:
    """The range decoder of constriction: 32-bit words, 64 bits of state, probabilities of 24 bits."""

    def __init__(self, data: bytes) -> None:
        self._words = (word for (word,) in struct.iter_unpack("<I", data))
        self._low, self._range, self._point = 0, 2**64 - 1, next(self._words, 0) << 32 | next(self._words, 0)

    def symbol(self, lefts: Sequence[int]) -> int:
        """The next symbol; the interval of symbol k is from lefts[k] to lefts[k + 1]."""
        scale = self._range >> 24
        quantile = (self._point - self._low) % 2**64 // scale
        if quantile >= 2**24:
            raise ValueError("the stream of the range coder is damaged")
        symbol = bisect_right(lefts, quantile) - 1
        self._low = (self._low + scale * lefts[symbol]) % 2**64
        self._range = scale * (lefts[symbol + 1] - lefts[symbol])
        if self._range < 2**32:
            self._low = self._low << 32 & 0xFFFFFFFFFFFFFFFF
            self._range <<= 32
            self._point = self._point << 32 & 0xFFFFFFFFFFFFFFFF | next(self._words, 0)
        return symbol


def _categorical(counts: Sequence[int]) -> list[int]:
    """The borders of the intervals of symbols with these counts, all in float32."""
    probabilities = np.array(counts).astype(np.float32) / np.float32(sum(counts))
    sums = np.add.accumulate(np.concatenate([np.zeros(1, np.float32), probabilities]), dtype=np.float32)
    scale = np.float32(2**24 - len(counts)) / sums[-1]
    return [*(int(each * scale) + k for k, each in enumerate(sums[:-1])), 2**24]


def _bernoulli(share: int) -> list[int]:
    """The borders of the intervals of a bit that is 1 with probability share / 256."""
    return [0, ((256 - share) * (2**24 - 2) >> 8) + 1, 2**24]
