"""The graph of an ONNX model in few bytes: its fields one by one, each bit with a probability mixed from what is around it.

A graph is coded in the order of its fields, but for three kinds of message in which the field that tells most comes first: of a
graph its inputs, of a node its operator, of a tensor its name. A name is first compared with a few guesses, such as the output
of the node before; only another one is spelled. Before it begins, the model of the probabilities has seen the common operators
of ONNX (`primer`), so that the usual attributes of a convolution cost nothing; it knows no network.

docs/mira.md specifies every context.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mirabelle.artifact.primer import primer
from mirabelle.artifact.wire import (
    ATTRIBUTE,
    DIMENSION,
    GRAPH,
    INTEGER,
    MEASURED,
    MESSAGES,
    MODEL,
    NODE,
    SIZES,
    TENSOR,
    VALUE,
    Fields,
    check_field,
    kind_of,
    number_of,
)
from mirabelle.codecs.mixing import Coder, Mixed, MixedEncoder, MixedTrial

_OPERATOR, _INPUT, _OUTPUT = (NODE, 4), (NODE, 1), (NODE, 2)
_ATTRIBUTE, _TENSOR, _SIZE, _NAMED_SIZE, _VALUE = (ATTRIBUTE, 1), (TENSOR, 8), (TENSOR, 1), (DIMENSION, 1), (VALUE, 1)
_FIRST = {GRAPH: 11, NODE: 4, TENSOR: 8}  # the field that is coded before the others
_LENGTH_BITS, _BYTE_BITS = 7, 8
_DEEPEST = 24
_NEAR = 24  # letters before that are a context of their own
_DIGITS = 18  # of a number that is counted on
_GUESSED = 3  # guesses whose letters are contexts while a name is spelled
_ENDING = re.compile(rb"[.:][^.:]*$")


@dataclass
class _Around:
    """What has been coded of the graph so far.

    Args:
        values: the inputs of the graph and the outputs of nodes, in their order.
        unmade: names that nodes read and none makes, in the order in which they are read: the tensors, which follow.
        operators: of the nodes before.
        endings: (operator, place) -> the end of the last name that stood there.
        latest: (operator, place) -> the last name that stood there.
        counts: layer -> how many numbered values it has.
        layer: of the last name with a dot that was new.
        operator: of the node that is coded.
        inputs: of that node.
        attribute: the name of the attribute that is coded.
        ending: of the tensor that is coded, such as ".bias".
        sizes: of that tensor.
        matrix: the sizes of the last tensor with two or more.
    """

    values: list[bytes] = field(default_factory=list)
    made: set[bytes] = field(default_factory=set)
    unmade: dict[bytes, None] = field(default_factory=dict)
    operators: tuple[bytes, bytes] = (b"", b"")
    endings: dict[tuple[bytes, int], bytes] = field(default_factory=dict)
    latest: dict[tuple[bytes, int], bytes] = field(default_factory=dict)
    counts: dict[bytes, int] = field(default_factory=dict)
    layer: bytes = b""
    operator: bytes = b""
    inputs: list[bytes] = field(default_factory=list)
    attribute: bytes = b""
    ending: bytes = b""
    sizes: list[int] = field(default_factory=list)
    matrix: tuple[int, ...] = ()

    def begin(self, message: int) -> None:
        if message == NODE:
            self.operator, self.inputs = b"", []
        elif message == TENSOR:
            self.ending, self.sizes = b"", []

    def end(self, message: int) -> None:
        if message == NODE:
            self.operators = (self.operator, self.operators[0])
        elif message == TENSOR and len(self.sizes) > 1:
            self.matrix = tuple(self.sizes)

    def learn(self, place: tuple[int, int], value: Any) -> None:
        """A field has been coded; an integer where ONNX has a text, or the other way round, teaches nothing."""
        if isinstance(value, int):
            if place == _SIZE:
                self.sizes.append(value)
        elif isinstance(value, bytes):
            self._learn_text(place, value)

    def _learn_text(self, place: tuple[int, int], value: bytes) -> None:
        if place[0] == NODE:
            self._learn_of_node(place, value)
        elif place == _VALUE:
            self._make(value)
        elif place == _ATTRIBUTE:
            self.attribute = value
        elif place == _TENSOR:
            self.ending = _ending(value)
            self.unmade.pop(value, None)

    def _learn_of_node(self, place: tuple[int, int], value: bytes) -> None:
        if place == _OPERATOR:
            self.operator = value
        elif place == _INPUT:
            at = (self.operator, len(self.inputs))
            self.endings[at], self.latest[at] = _ending(value), value
            self.inputs.append(value)
            if value not in self.made and value not in self.unmade:
                self.unmade[value] = None
                if _ending(value)[:1] == b".":
                    self.layer = _layer(value)
        elif place == _OUTPUT:
            self.latest[self.operator, -1] = value
            if _ending(value)[:1] == b":":
                self.counts[_layer(value)] = self.counts.get(_layer(value), 0) + 1
            self._make(value)

    def _make(self, value: bytes) -> None:
        self.values.append(value)
        self.made.add(value)

    def subject(self, message: int) -> Hashable:
        """What a field of such a message is about."""
        if message == ATTRIBUTE:
            return self.operator, self.attribute
        return {NODE: self.operator, TENSOR: self.ending}.get(message, b"")

    def about_text(self, place: tuple[int, int], run: int) -> tuple[Sequence[Hashable], Iterable[bytes]]:
        """(contexts of a string, guesses)."""
        operator, before = self.operator, self.operators
        if place == _OPERATOR:
            return [before[0], before], ()
        if place == _INPUT:
            return [(operator, run), (operator, run, before[0])], self._inputs(run)
        if place == _OUTPUT:
            return [operator], self._outputs()
        if place == _TENSOR:
            return [b""], [*self.unmade][:1]
        if place == _VALUE:
            return [b""], self.values[-1:]
        return [self.subject(place[0])], ()

    def _inputs(self, run: int) -> Iterator[bytes]:
        if self.values and self.values[-1] not in self.inputs:
            yield self.values[-1]
        ending = self.endings.get((self.operator, run), b"")
        last = self.inputs[-1] if self.inputs else self.values[-1] if self.values else b""
        yield _layer(last) + ending
        yield _following(self.layer) + ending
        yield from self.values[-2:-1]
        latest = self.latest.get((self.operator, run), b"")
        yield _following(latest)
        yield latest

    def _outputs(self) -> Iterator[bytes]:
        own = [name for name in self.inputs if name in self.unmade]
        layer = _layer((own or self.inputs or [b""])[-1])
        yield layer + b":%d" % self.counts.get(layer, 0)
        yield layer
        yield _following(self.latest.get((self.operator, -1), b""))
        yield self.operator.lower()
        yield b"output"

    def about_number(self, place: tuple[int, int], run: int) -> tuple[Sequence[Hashable], Sequence[int | None]]:
        """(contexts of an integer, guesses)."""
        if place == _SIZE:
            matrix = self.matrix
            guesses = (matrix[run] if run < len(matrix) else None, matrix[0] if matrix else None)
            return [(), (self.ending, run), (self.ending, run, self.sizes[-1] if self.sizes else 0)], guesses
        subject = self.subject(place[0])
        own = (self.matrix[0] if self.matrix else None,) if place == _NAMED_SIZE else ()
        return [(), (subject,), (subject, run)], own


class Structure:
    """Codes the fields of a graph, and what else belongs to the head of a file, with one coder.

    Args:
        coder: encodes or decodes.
        model: of the probabilities; by default the one that has seen the common operators.
    """

    def __init__(self, coder: Coder, model: Mixed | None = None) -> None:
        self._coder, self._model, self._around = coder, Mixed(base=_primed()) if model is None else model, _Around()

    @property
    def coder(self) -> Coder:
        return self._coder

    def trial(self, coder: MixedTrial) -> Structure:
        """A copy that measures what this one would code next."""
        return Structure(coder, Mixed(base=self._model))

    def repeat(self, trial: Structure) -> None:
        """Code what a trial has coded, which no other code has followed."""
        assert isinstance(self._coder, MixedEncoder), "a decoder does not try"
        assert isinstance(trial.coder, MixedTrial), "nothing else keeps what it codes"
        self._coder.repeat(trial.coder)
        self._model.adopt(trial._model)

    def fields(self, message: int = MODEL, given: Fields | None = None, depth: int = 0) -> Fields:
        """Encode the fields of a message, or decode them, sorted by number, if none are given.

        Raises:
            ValueError: if what is decoded cannot be a message.
        """
        if depth > _DEEPEST:
            raise ValueError("messages lie too deep in each other")
        around, first = self._around, _FIRST.get(message)
        left = None if given is None else iter(sorted(given, key=lambda one: number_of(one[0]) != first))
        found: Fields = []
        before, run = 0, 0
        around.begin(message)
        while True:
            tag, value = (None, None) if left is None else next(left, (0, None))
            subject = around.subject(message)
            contexts = [
                before,
                (before, run, subject),
                (before, len(around.sizes)),
                (before, around.operators[0], around.operator),
            ]
            tag = self.number(tag, ("tag", message), contexts)
            if not tag:
                break
            run = run + 1 if tag == before else 0
            place, kind, before = (message, number_of(tag)), kind_of(tag), tag
            if kind == INTEGER:
                value = self.number(value, place, *around.about_number(place, run))
            elif place in MESSAGES and kind == MEASURED:
                value = self.fields(MESSAGES[place], value, depth + 1)
            elif kind == MEASURED:
                value = self._text(value, place, *around.about_text(place, run))
            elif kind in SIZES:
                value = self.element(value, SIZES[kind], (place, around.subject(message)))
            else:
                raise ValueError(f"a field has the unknown kind {kind}")
            check_field(tag, value)
            around.learn(place, value)
            found.append((tag, value))
        around.end(message)
        return sorted(found, key=lambda one: number_of(one[0]))

    def number(
        self, value: int | None, place: Hashable, contexts: Sequence[Hashable], guesses: Sequence[int | None] = ()
    ) -> int:
        """Code a non-negative integer: its length in bits, then its bits below the highest one."""

        def code(bit: int, node: tuple[int, int], guessed: list[int | None]) -> int:
            keys = [(place, context, node) for context in contexts]
            return self._bit(bit, [*keys, *((place, k, found) for k, found in enumerate(guessed))], (place, node[0] < 0))

        length = 0
        for low in range(_LENGTH_BITS - 1, -1, -1):
            bits = [None if guess is None else guess.bit_length() for guess in guesses]
            guessed = [None if bit is None or bit >> low + 1 != length else bit >> low & 1 for bit in bits]
            bit = 0 if value is None else value.bit_length() >> low & 1
            length = 2 * length + code(bit, (-1 - low, length), guessed)
        found = min(length, 1)
        for low in range(length - 2, -1, -1):
            guessed = [None if guess is None or guess >> low + 1 != found else guess >> low & 1 for guess in guesses]
            found = 2 * found + code(0 if value is None else value >> low & 1, (low, found), guessed)
        return found

    def element(self, value: bytes | None, size: int, place: Hashable, before: bytes = b"") -> bytes:
        """Code the bytes of a number, little-endian, from the highest one; `before` is the element before it."""
        found = b""
        for at in range(size - 1, -1, -1):
            contexts = [(place, at), (place, at, found), (place, at, "near", before[at : at + 1], found[-1:])]
            found = bytes([self._byte(None if value is None else value[at], contexts, "element")]) + found
        return found

    def _text(
        self, value: bytes | None, place: tuple[int, int], contexts: Sequence[Hashable], guesses: Iterable[bytes]
    ) -> bytes:
        """Code a string: whether it is a guess, one after another; otherwise letter by letter."""
        tried: list[bytes] = []
        for guess in guesses:
            if guess and guess not in tried:
                keys = [(place, "is", len(tried)), *((place, "is", len(tried), context) for context in contexts)]
                if self._bit(int(value == guess), keys, (place, "is", len(keys))):
                    return guess
                tried.append(guess)
        found = b""
        while True:
            near = found[-_NEAR:]
            keys = [(place, near), *((place, context, near) for context in contexts)]
            keys += [("last", length, found[-length:]) for length in (1, 2, 3)]
            keys += [
                (k, guess[len(found) : len(found) + 1] if guess.startswith(found) else None)
                for k, guess in enumerate(tried[:_GUESSED])
            ]
            if self._bit(
                0 if value is None else int(len(found) == len(value)), [("end", key) for key in keys], ("end", len(keys))
            ):
                return found
            found += bytes([self._byte(None if value is None else value[len(found)], keys, ("letter", len(keys)))])

    def _byte(self, value: int | None, contexts: Sequence[Hashable], mixer: Hashable) -> int:
        node = 1
        for low in range(_BYTE_BITS - 1, -1, -1):
            node = 2 * node + self._bit(0 if value is None else value >> low & 1, [(key, node) for key in contexts], mixer)
        return node % (1 << _BYTE_BITS)

    def _bit(self, bit: int, contexts: Sequence[Hashable], mixer: Hashable) -> int:
        return self._coder.code(bit, self._model, contexts, mixer)


@functools.cache
def _primed() -> Mixed:
    model = Mixed()
    Structure(MixedEncoder(), model).fields(MODEL, primer())
    return model


def _ending(name: bytes) -> bytes:
    found = _ENDING.search(name)
    return found[0] if found else b""


def _layer(name: bytes) -> bytes:
    """The name without its last part: "fc1" of "fc1.bias" and of "fc1:0"."""
    return name[: len(name) - len(_ending(name))]


def _following(name: bytes) -> bytes:
    """The name with its last number increased; empty without a number, or if it has more than 18 digits."""
    end = len(name)
    while end and not name[end - 1 : end].isdigit():
        end -= 1
    begin = end
    while begin and name[begin - 1 : begin].isdigit():
        begin -= 1
    return name[:begin] + b"%d" % (int(name[begin:end]) + 1) + name[end:] if 0 < end - begin <= _DIGITS else b""
