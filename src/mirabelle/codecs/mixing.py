"""A binary arithmetic coder whose probabilities are mixed from adaptive counters, in integers alone: the same on every machine.

A bit is coded in several contexts. In each of them a counter holds the probability of a 1 among the bits seen there. These
probabilities are mixed in the logistic domain, with weights that learn from each bit. Encoder and decoder do the same steps.

- stretch and squash: s(p) = 256 · ln(p / (4096 − p)) for p in 1 … 4095 and its inverse, within ±2047, from a table of 33
  numbers.
- a counter: p of 16 bits, and n, how many bits it has seen, at most `LIMIT`; p moves by (target − p) / (n + 1.5).
- a mixer: weights of 16 fractional bits, one for each context; the result is squash(Σ w · s(p)).
- the coder: a range of 32 bits, [low, high], which is divided in proportion to a probability of 12 bits.

Source: Mahoney 2005, "Adaptive weighing of context models for lossless data compression", Florida Tech. CS-2005-16.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Protocol

LIMIT = 255
MOST_BITS = 1 << 22  # of all streams of a file; they take about twenty seconds
_BITS_OF_A_BYTE = 1 << 15  # more than a byte can hold, since each takes at least log₂(4096 / 4095) bits
_ONE = 1 << 16
_HALF, _TOP, _ALL = 1 << 15, 0xFF000000, 0xFFFFFFFF
_MOST = 2047
_RATE = 6  # of the learning of weights: a step is error · stretch · 6 / 2^14, in units of 1 / 2^16
# squash at −2048, −1920, … 2048: 4096 / (1 + exp(−x / 256)), rounded.
_KNOTS = (
    1, 2, 4, 6, 10, 17, 27, 45, 74, 120, 194, 311, 488, 747, 1102, 1546, 2048, 2550, 2994, 3349, 3608, 3785, 3902, 3976, 4022,
    4051, 4069, 4079, 4086, 4090, 4092, 4094, 4095,
)  # fmt: skip


def squash(x: int) -> int:
    """The probability, 1 to 4095, of a logistic value."""
    x = max(-_MOST, min(_MOST, x)) + 2048
    low, part = x >> 7, x & 127
    return (_KNOTS[low] * (128 - part) + _KNOTS[low + 1] * part + 64) >> 7


def _stretches() -> list[int]:
    """stretch(p) for p in 0 … 4095: the smallest x with squash(x) ≥ p."""
    found, x = [], -_MOST
    for p in range(4096):
        while x < _MOST and squash(x) < p:
            x += 1
        found.append(x)
    return found


_STRETCH = _stretches()
_SHARES = [2 * _ONE // (2 * n + 3) for n in range(LIMIT + 1)]


class Mixed:
    """The model of a coder: counters by context, mixers by the name of the set of contexts.

    Args:
        start: the probability of a 1 with which counters begin, of 16 bits.
        base: a model that has learned before; it must not learn any more while this one is used, which begins as a copy of it.
    """

    def __init__(self, start: int = _HALF, base: Mixed | None = None) -> None:
        self._start, self._base = start, base
        self._counters: dict[Hashable, list[int]] = {}
        self._mixers: dict[Hashable, list[int]] = {}

    def probability(self, contexts: Sequence[Hashable], mixer: Hashable) -> int:
        """The probability of a 1, of 12 bits, for the next bit; `learn` must follow."""
        counters = self._counters
        self._used = [counters.get(key) or self._counter(key) for key in contexts]
        self._inputs = [_STRETCH[counter[0] >> 4] for counter in self._used]
        weights = self._mixers.get(mixer)
        if weights is None:
            weights = self._mixers[mixer] = self._mixer(mixer) or [_ONE * 4 // (3 * len(contexts))] * len(contexts)
        self._weights = weights
        total = 0
        for weight, value in zip(weights, self._inputs, strict=True):
            total += weight * value
        self._p = squash(total >> 16)
        return self._p

    def _counter(self, key: Hashable) -> list[int]:
        model = self._base
        while model is not None and key not in model._counters:
            model = model._base
        made = self._counters[key] = [self._start, 0] if model is None else [*model._counters[key]]
        return made

    def _mixer(self, key: Hashable) -> list[int]:
        model = self._base
        while model is not None and key not in model._mixers:
            model = model._base
        return [] if model is None else [*model._mixers[key]]

    def adopt(self, trial: Mixed) -> None:
        """Know what a trial has learned that began with this model."""
        self._counters |= trial._counters
        self._mixers |= trial._mixers

    def learn(self, bit: int) -> None:
        """Move counters and weights towards the bit."""
        error = ((bit << 12) - self._p) * _RATE
        weights, target = self._weights, bit * (_ONE - 1)
        for place, value in enumerate(self._inputs):
            weights[place] += (value * error + (1 << 13)) >> 14
        for counter in self._used:
            seen = counter[1]
            counter[0] += ((target - counter[0]) * _SHARES[seen]) >> 16
            if seen < LIMIT:
                counter[1] = seen + 1


class Allowance:
    """How many bits the streams of a file may still have.

    Args:
        left: how many.
    """

    def __init__(self, left: int = MOST_BITS) -> None:
        self.left = left

    def take(self) -> None:
        """Take one.

        Raises:
            ValueError: if none is left.
        """
        if not self.left:
            raise ValueError("so many bits are not coded in contexts")
        self.left -= 1


class Coder(Protocol):
    """Codes bits in contexts: encodes them, decodes them, or counts what they take."""

    def code(self, bit: int, model: Mixed, contexts: Sequence[Hashable], mixer: Hashable = "") -> int:
        """Code a bit and return it; a decoder does not read the argument."""


class MixedEncoder:
    """Codes bits with the probabilities of models.

    Args:
        allowance: of the file.
    """

    def __init__(self, allowance: Allowance | None = None) -> None:
        self._low, self._high, self._allowance = 0, _ALL, allowance or Allowance()
        self._out = bytearray()

    def code(self, bit: int, model: Mixed, contexts: Sequence[Hashable], mixer: Hashable = "") -> int:
        """Code a bit; the same is returned.

        Raises:
            ValueError: if there are more bits than a file may have.
        """
        self._give(bit, model.probability(contexts, mixer))
        model.learn(bit)
        return bit

    def repeat(self, trial: MixedTrial) -> None:
        """Code the bits of a trial with the probabilities that they had there.

        Raises:
            ValueError: as `code`.
        """
        for bit, p in trial.coded:
            self._give(bit, p)

    def _give(self, bit: int, p: int) -> None:
        self._allowance.take()
        middle = self._low + ((self._high - self._low) >> 12) * p
        if bit:
            self._high = middle
        else:
            self._low = middle + 1
        while not (self._low ^ self._high) & _TOP:
            self._out.append(self._high >> 24)
            self._low, self._high = self._low << 8 & _ALL, self._high << 8 & _ALL | 255

    def finished(self) -> bytes:
        """The bytes: the fewest after which zeros lead into the range; trailing zeros are left out."""
        for kept in range(5):
            unit = 1 << (32 - 8 * kept)
            value = -(-self._low // unit) * unit
            if value <= self._high:
                break
        return bytes(self._out + value.to_bytes(5, "big")[1 : 1 + kept]).rstrip(b"\0")


class MixedLength:
    """Counts the bits that an encoder would give, without giving any."""

    def __init__(self) -> None:
        self.bits = 0.0

    def code(self, bit: int, model: Mixed, contexts: Sequence[Hashable], mixer: Hashable = "") -> int:
        """Count a bit; the same is returned."""
        p = model.probability(contexts, mixer)
        self.bits -= math.log2((p if bit else 4096 - p) / 4096)
        model.learn(bit)
        return bit


class MixedTrial:
    """Counts the bits that an encoder would give, and keeps what it coded, so that an encoder need not model it again."""

    def __init__(self) -> None:
        self.coded: list[tuple[int, int]] = []  # a bit, and the probability of a 1

    @property
    def bits(self) -> float:
        """How many an encoder would give."""
        return -sum(math.log2((p if bit else 4096 - p) / 4096) for bit, p in self.coded)

    def code(self, bit: int, model: Mixed, contexts: Sequence[Hashable], mixer: Hashable = "") -> int:
        """Keep a bit; the same is returned."""
        self.coded.append((bit, model.probability(contexts, mixer)))
        model.learn(bit)
        return bit


class MixedDecoder:
    """Decodes the bits that an encoder has coded, with models that begin as its did.

    Args:
        data: what the encoder gave; behind its end there are zeros.
        allowance: of the file.
    """

    def __init__(self, data: bytes, allowance: Allowance | None = None) -> None:
        self._low, self._high, self._data, self._at = 0, _ALL, data, 4
        self._value = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
        self._allowance, self._own = allowance or Allowance(), Allowance((len(data) + 5) * _BITS_OF_A_BYTE)

    def code(self, bit: int, model: Mixed, contexts: Sequence[Hashable], mixer: Hashable = "") -> int:
        """The next bit; the argument `bit` is not read.

        Raises:
            ValueError: if there are more bits than so many bytes can hold, or than a file may have.
        """
        self._allowance.take()
        self._own.take()
        middle = self._low + ((self._high - self._low) >> 12) * model.probability(contexts, mixer)
        bit = int(self._value <= middle)
        if bit:
            self._high = middle
        else:
            self._low = middle + 1
        while not (self._low ^ self._high) & _TOP:
            following = self._data[self._at] if self._at < len(self._data) else 0
            self._low, self._high = self._low << 8 & _ALL, self._high << 8 & _ALL | 255
            self._value, self._at = self._value << 8 & _ALL | following, self._at + 1
        model.learn(bit)
        return bit

    @property
    def read_to_the_end(self) -> bool:
        """Whether no byte is left that could not have mattered."""
        return self._at >= len(self._data)
