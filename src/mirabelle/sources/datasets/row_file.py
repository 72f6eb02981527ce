"""Rows of equal length in a file, which are read by their numbers: some in any order, or all in blocks."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.integer[Any]]
_SPAN = 1 << 26  # bytes of a file that are mapped at once: mapped pages count as memory of the process
_BLOCK = 1 << 24  # bytes that are read at once when all rows are read
_LONG = 1 << 15  # bytes of a row that is read by a call of its own
_APART = 1 << 15  # bytes of the file for each row that is read, from which on less is read without what is between them
_READERS = 8  # threads that read such rows


@dataclass(frozen=True)
class RowFile:
    """Rows in a file, one after the other.

    Args:
        path: of the file.
        start: position of the first row, in bytes.
        count: number of rows.
        shape: of a row.
        kind: of its values, without Python objects.
        size: of the whole file in bytes.
        time: of its last change, in nanoseconds.
        remedy: what to do if the file is gone or another one.
    """

    path: Path
    start: int
    count: int
    shape: tuple[int, ...]
    kind: np.dtype[Any]
    size: int
    time: int
    remedy: str

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.kind.itemsize

    @property
    def block_rows(self) -> int:
        """The number of rows that `blocks` reads at once."""
        return max(1, _BLOCK // max(1, self.row_bytes))

    def read(self, index: Indices) -> Array:
        """Some rows, (rows, *shape).

        Raises:
            UserError: E130 if the file is gone, E141 if it is another one.
        """
        found = np.empty((len(index), *self.shape), self.kind)
        if found.size:
            with self._opened() as file:
                if self.row_bytes < _LONG:
                    self._copy_mapped(file, index, found)
                else:
                    self._read_each(file, index, found)
        return found

    def _read_each(self, file: BufferedReader, index: Indices, found: Array) -> None:
        for row, place in zip(found.reshape(len(index), -1).view(np.uint8), index.tolist(), strict=True):
            if os.preadv(file.fileno(), [row.data], self.start + place * self.row_bytes) != self.row_bytes:
                raise self._damaged("it ends too early")

    def _copy_mapped(self, file: BufferedReader, index: Indices, found: Array) -> None:
        """Copy short rows from a mapping: a call for each of them costs ten times as much.

        They are copied in the order of the file, span by span, since pages that are mapped count as memory of the process. If
        they lie far apart, what is between them is not read, and several threads wait for the disk.
        """
        piece = np.dtype((np.void, self.row_bytes))  # a row is copied as one value
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        content, out = np.frombuffer(mapped, piece, self.count, self.start), found.reshape(-1).view(piece)
        order = np.argsort(index)
        rows = index[order]
        apart = self.count * self.row_bytes > _APART * len(index)
        if apart:
            mapped.madvise(mmap.MADV_RANDOM)
        spans = rows // max(1, (_SPAN // _READERS if apart else _SPAN) // self.row_bytes)
        bounds = [0, *(np.flatnonzero(spans[1:] != spans[:-1]) + 1).tolist(), len(rows)]

        def copy(part: int) -> None:
            own = slice(bounds[part], bounds[part + 1])
            out[order[own]] = content.take(rows[own])
            first, last = (self.start + int(rows[place]) * self.row_bytes for place in (own.start, own.stop - 1))
            first -= first % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_DONTNEED, first, last + self.row_bytes - first)

        if apart:
            with ThreadPoolExecutor(_READERS) as readers:
                list(readers.map(copy, range(len(bounds) - 1)))
        else:
            for part in range(len(bounds) - 1):
                copy(part)

    def blocks(self) -> Iterator[Array]:
        """All rows in order, in blocks of bounded size.

        Raises:
            UserError: E130 if the file is gone, E141 if it is another one.
        """
        with self._opened() as file:
            file.seek(self.start)
            for first in range(0, self.count, self.block_rows):
                rows = min(self.block_rows, self.count - first)
                block = np.empty(rows * self.row_bytes, np.uint8)
                if file.readinto(block.data) != block.size:
                    raise self._damaged("it ends too early")
                yield block.view(self.kind).reshape(rows, *self.shape)

    def ending(self, count: int) -> bytes:
        """The last bytes of the file."""
        with self._opened() as file:
            file.seek(self.size - count)
            return file.read(count)

    @contextmanager
    def _opened(self) -> Iterator[BufferedReader]:
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_size != self.size:
                    raise self._damaged(f"it has {found.st_size:,} bytes instead of {self.size:,}")
                if found.st_mtime_ns != self.time:
                    raise self._damaged("it was written to after it had been opened first")
                yield file
        except FileNotFoundError as error:
            raise UserError("E130", f"{self.path} is gone since it was opened", self.remedy) from error

    def _damaged(self, why: str) -> UserError:
        return UserError("E141", f"{self.path} has changed or is damaged: {why}", self.remedy)
