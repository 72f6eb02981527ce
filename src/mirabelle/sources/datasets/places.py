"""Where an encoded image or recording is: a file, or a part of a tar file, which is read without extracting it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias, cast

import numpy as np

from mirabelle.errors import UserError

_DRAWN, _ENDS = 256, 1 << 16  # places whose contents identify all, and bytes of each at its beginning
_SHOWN = 200  # most characters of a name in a message


@dataclass(frozen=True)
class Shard:
    """A tar file as it was when its members were listed.

    Args:
        path: of the file.
        size: its bytes.
        changed: when it was last written, in nanoseconds.
    """

    path: Path
    size: int
    changed: int

    @classmethod
    def at(cls, path: Path) -> Shard:
        """The file that is there now.

        Raises:
            UserError: E130 if it is not there.
        """
        try:
            found = path.stat()
        except FileNotFoundError:
            raise _gone(path) from None
        return cls(path, found.st_size, found.st_mtime_ns)

    def opened(self) -> BinaryIO:
        """The file, if it is still the same.

        Raises:
            UserError: E130 if it is gone, E141 if it has changed.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            raise _gone(self.path) from None
        found = os.fstat(file.fileno())
        if (found.st_size, found.st_mtime_ns) != (self.size, self.changed):
            file.close()
            message = f"{self.path} has changed since its members were listed"
            raise UserError("E141", message, "begin anew, so that they are listed again")
        return file


@dataclass(frozen=True, slots=True)
class Member:
    """A part of a tar file: `size` bytes from `offset` on. Its name serves for messages only, and is never used as a path."""

    shard: Shard
    name: str
    offset: int
    size: int

    def open(self, mode: Literal["rb"] = "rb", /) -> BinaryIO:
        """The bytes of the member; those around it cannot be read.

        Raises:
            UserError: E130 if the shard is gone, E141 if it has changed.
        """
        del mode
        return cast("BinaryIO", io.BufferedReader(_Part(self.shard.opened(), self.offset, self.size)))

    def __str__(self) -> str:
        shown = "".join(letter if letter.isprintable() else "?" for letter in self.name[:_SHOWN])
        return f"{shown} in {self.shard.path}"


Place: TypeAlias = Path | Member


class _Part(io.RawIOBase):
    """A part of a file as a file that can only be read."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("a position before the beginning")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = min(len(buffer), max(self._size - self._at, 0))
        self._file.seek(self._offset + self._at)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def known_of(places: Sequence[Place]) -> tuple[str, str]:
    """(names and sizes of all places, a line for each; where they are and when they were written)."""
    names, whens = [], []
    folders: dict[Path, Path] = {}  # resolved once each
    shards: dict[Shard, str] = {}
    for place in places:
        if isinstance(place, Member):
            if place.shard not in shards:
                shards[place.shard] = f"{place.shard.path.resolve()} {place.shard.changed}"
            names.append(f"{place.shard.path.name}/{place.name} {place.size}\n")
            whens.append(f"{shards[place.shard]} {place.offset}\n")
        else:
            found = place.stat()
            if place.parent not in folders:
                folders[place.parent] = place.parent.resolve()
            names.append(f"{place.parent.name}/{place.name} {found.st_size}\n")
            whens.append(f"{folders[place.parent] / place.name} {found.st_mtime_ns}\n")
    return "".join(names), "".join(whens)


def contents_of(places: Sequence[Place]) -> Iterator[bytes]:
    """The beginnings of the contents of some places, always the same ones."""
    for k in np.linspace(0, len(places) - 1, min(len(places), _DRAWN)).astype(int):
        try:
            with places[k].open("rb") as file:
                yield file.read(_ENDS)
        except OSError:  # told when the whole file is read
            yield b""


def _gone(path: Path) -> UserError:
    return UserError("E130", f"the shard {path} is not there any more", "put it back, and run the same command again")
