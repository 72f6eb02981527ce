"""Integers of variable length: seven bits in each byte, the lowest first (LEB128)."""

from __future__ import annotations

from collections.abc import Iterable

_MOST_BYTES = 10
_MORE = 0x80  # this bit is set if another byte follows


def write_varints(values: Iterable[int]) -> bytes:
    """Encode non-negative integers, one after another.

    Example:
        >>> write_varints([1, 300]).hex()
        '01ac02'
    """
    out = bytearray()
    for value in values:
        rest = int(value)
        assert rest >= 0, "varints are non-negative"
        while rest >= _MORE:
            out.append(rest % _MORE + _MORE)
            rest //= _MORE
        out.append(rest)
    return bytes(out)


class Reader:
    """Reads integers and bytes one after another; raises ValueError if the data are too short."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def varint(self) -> int:
        value = 0
        for k in range(_MOST_BYTES):
            byte = self.take(1)[0]
            value |= (byte % _MORE) << (7 * k)
            if byte < _MORE:
                return value
        raise ValueError("an integer is longer than ten bytes")

    def take(self, count: int) -> bytes:
        return bytes(self.view(count))

    def view(self, count: int) -> memoryview:
        """The next bytes, without a copy."""
        if count > self.left:
            raise ValueError(f"{count} bytes expected, only {self.left} left")
        self._at += count
        return self._data[self._at - count : self._at]

    def rest(self) -> bytes:
        return self.take(self.left)
