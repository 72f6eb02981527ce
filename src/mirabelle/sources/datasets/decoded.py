"""Rows that are made from files, such as decoded images or features of recordings: once into a file, or whenever they are read.

The file is read nearly as fast as memory, whatever the number of rows.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from mirabelle import __version__
from mirabelle.errors import UserError
from mirabelle.run.files import cannot_write, digest
from mirabelle.sources.datasets.cache import CACHE, SPARE, alone, cache_folder, new_file
from mirabelle.sources.datasets.places import Place, contents_of, known_of
from mirabelle.sources.datasets.splits import Unread
from mirabelle.sources.datasets.unreadable import Unreadable
from mirabelle.sources.datasets.workers import Workers
from mirabelle.task.reading_cost import Reading, bytes_in_words

if TYPE_CHECKING:
    from mirabelle.sources.datasets.divided import OfFiles

_AT_ONCE, _BLOCK = 256, 1 << 26  # most rows that are made between two writes, or looked at together, and their bytes
_TIMED, _LOOKED_AT = 32, 256  # rows by which the making is timed, and by which data are known that are only looked at

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_LOOKING = ContextVar("looking", default=False)

Indices = npt.NDArray[np.integer[Any]]
Row = npt.NDArray[Any]
Change: TypeAlias = Callable[[Row, Indices], Row]


@dataclass(frozen=True)
class Manner:
    """How a row is made from a file.

    Args:
        make: place -> row; raises E131 for a file that cannot be read.
        shape: of a row.
        kind: dtype of a row.
        words: identify the manner: equal words give equal rows.
        packages: that make the rows, with their versions; with other ones, a file is made again.
        several: what the rows are made of, in the plural, such as "images".
        done: what is done with them, such as "decoded".
    """

    make: Callable[[Any], Row]
    shape: tuple[int, ...]
    kind: type[np.generic]
    words: str
    packages: str
    several: str
    done: str

    @property
    def nbytes(self) -> int:
        """The bytes of a row."""
        return int(np.prod(self.shape)) * np.dtype(self.kind).itemsize

    @property
    def at_once(self) -> int:
        """How many rows are made between two writes, or looked at together."""
        return max(1, min(_AT_ONCE, _BLOCK // max(self.nbytes, 1)))


@contextmanager
def only_looked_at() -> Iterator[None]:
    """A context in which no file of rows is made, and what is learned from all rows is estimated from a few: for forecasts."""
    before = _LOOKING.set(True)
    try:
        yield
    finally:
        _LOOKING.reset(before)


def all_rows(places: Sequence[Place], manner: Manner, unreadable: Unreadable, workers: int | None) -> Row:
    """All rows, in memory; those of files that cannot be read are 0."""
    return _made(places, manner, lambda place: unreadable.tried(manner.make, place), Workers(workers))[0]


class Rows:
    """Rows that are read by their positions.

    They are in a file in the cache folder, which is made now unless it is there already; without space, or if the settings say
    so, they are made whenever they are read.

    Args:
        places: of the files.
        manner: how rows are made.
        unreadable: gets the files that cannot be read: all of them if there is a file of rows, otherwise those that are met by
            `parts` and `check`.
        settings: `cache`, `workers` and `skip_unreadable`.

    Raises:
        UserError: E131 naming a file that cannot be read, if such files are not left out; E202 if the disk becomes full.
    """

    def __init__(self, places: Sequence[Place], manner: Manner, unreadable: Unreadable, settings: OfFiles) -> None:
        self._places, self._manner, self._unreadable, self._settings = places, manner, unreadable, settings
        names, whens = known_of(places)
        # Of the names and sizes of all files, the contents of some, and how they become rows.
        self.identity = digest(manner.words.encode(), names.encode(), *contents_of(places))
        made_by = f"{np.dtype(manner.kind).str} {manner.packages} {__version__}"
        self._file = cache_folder() / f"{digest(self.identity.encode(), whens.encode(), made_by.encode())}.npy"
        self._workers = Workers(settings.workers)
        self._looked_at = _LOOKING.get()
        self._met = np.zeros(len(places), bool)
        self._lacking = ""
        self._kept = settings.cache and self._prepared()

    def read(self, index: Indices) -> Row:
        """The rows at some positions.

        Raises:
            UserError: E131 if a file can no longer be read, E141 if the file of rows is damaged.
        """
        if self._kept and self._file.is_file():
            return _rows(self._file, index)
        return _made([self._places[k] for k in index], self._manner, self._read_one, self._workers)[0]

    def chosen(self, index: Indices, targets: npt.NDArray[Any], change: Change | None = None) -> Unread:
        """Some of the rows as the inputs of a split.

        Args:
            index: positions of the rows.
            targets: of the samples.
            change: (rows, their positions) -> raw inputs; by default rows are raw inputs.
        """

        def read(own: npt.NDArray[Any]) -> Row:
            rows = self.read(index[own])
            return rows if change is None else change(rows, index[own])

        return Unread(read, targets, f"{self.identity} {digest(index.tobytes())}", cost=self.reading)

    def parts(self, positions: Indices) -> Iterator[tuple[Indices, Row]]:
        """Those of the rows at some positions that can be read, with their positions, in parts of bounded size."""
        if self._looked_at and len(positions) > _LOOKED_AT:
            positions = positions[np.linspace(0, len(positions) - 1, _LOOKED_AT).astype(int)]
        at_once = self._manner.at_once
        for start in range(0, len(positions), at_once):
            index = positions[start : start + at_once]
            if self._kept and self._file.is_file():
                readable = np.array([self._places[k] not in self._unreadable.found for k in index], bool)
                rows = _rows(self._file, index)
            else:
                rows, readable = self._tried(index)
            if readable.any():
                yield index[readable], rows[readable]

    def check(self, positions: Indices) -> None:
        """Find the files at some positions that cannot be read, if they have not been read yet."""
        if not self._kept:
            for _ in self.parts(positions[~self._met[positions]]):
                pass

    def reading(self, count: int) -> Reading:
        """How so many of the rows are read, and what it costs."""
        if not self._kept:
            return Reading("source", 0, seconds=self._seconds_each * count)
        nbytes = self._manner.nbytes * len(self._places)
        if self._file.is_file():
            return Reading("file", nbytes, place=self._file)
        seconds = self._seconds_each * len(self._places)
        return Reading("file", nbytes, seconds, self._file, _free(self._file))

    @property
    def sentence(self) -> str:
        """How the rows are read."""
        several, done = self._manner.several, self._manner.done
        few = " Only a few were looked at: whether all can be read is told by the run."
        few = few if self._looked_at and not (self._kept and self._file.is_file()) else ""
        if self._kept:
            size = bytes_in_words(self._manner.nbytes * len(self._places))
            where = f"a file of {size} in the cache folder, into which they are {done} once"
            return f"The {several} are read when they are needed, from {where}.{few}"
        if self._lacking:
            way = f"The variable {CACHE} names another folder."
            return f"{self._lacking}: they are {done} whenever they are read. {way}{few}"
        return f"The {several} are {done} whenever they are read (cache = false).{few}"

    def _prepared(self) -> bool:
        """Whether there is a file with the rows, which is made if there is space for it."""
        manner, needed = self._manner, int(self._manner.nbytes * len(self._places) * SPARE)
        self._lacking = f"{needed / 1e9:,.1f} GB for {manner.done} {manner.several} are not free in {self._file.parent}"
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            if self._looked_at and not self._file.is_file():
                return _free(self._file) >= needed
            if not self._file.is_file():
                with alone(self._file):
                    if not self._file.is_file():  # another process may have made it meanwhile
                        if _free(self._file) < needed:
                            return False
                        self._write()
            self._know_unreadable()
        except OSError as error:
            self._lacking = f"{self._file.parent} cannot be used for {manner.done} {manner.several} ({error.strerror or error})"
            return False
        return True

    def _write(self) -> None:
        """Write all rows, and behind them the files that cannot be read."""
        manner, count = self._manner, len(self._places)
        descriptor = {"descr": np.dtype(manner.kind).str, "fortran_order": False, "shape": (count, *manner.shape)}
        begun = False
        try:
            with new_file(self._file) as opened:
                begun = True
                np.lib.format.write_array_header_1_0(opened, descriptor)
                lost: list[tuple[int, str]] = []
                for start in range(0, count, manner.at_once):
                    index = np.arange(start, min(start + manner.at_once, count))
                    rows, readable = self._tried(index)
                    opened.write(rows.data)
                    lost += [(k, self._unreadable.found[self._places[k]]) for k in index[~readable].tolist()]
                opened.write(json.dumps(lost).encode() if lost else b"")
        except OSError as error:
            if not begun:  # the folder cannot be used; what fails later is a full disk
                raise
            raise cannot_write(self._file, error, manner.nbytes * count) from error

    def _know_unreadable(self) -> None:
        """The files that could not be read when the rows were made; one is an error if such files are not left out."""
        with self._file.open("rb") as opened:
            shape, kind, first = _header(opened)
            opened.seek(first + int(np.prod(shape)) * kind.itemsize)
            behind = opened.read()
        try:
            lost = [(self._places[k], str(reason)) for k, reason in json.loads(behind or b"[]")]
        except (ValueError, TypeError, LookupError) as error:
            raise _damaged(self._file) from error
        for place, reason in lost:
            self._unreadable.add(place, UserError("E131", reason, f"give intact {self._manner.several}"))

    def _read_one(self, place: Place) -> Row | None:
        """The row of a file that could be read before, or has not been tried."""
        return self._manner.make(place) if self._unreadable.skip else self._unreadable.tried(self._manner.make, place)

    def _tried(self, index: Indices) -> tuple[Row, npt.NDArray[np.bool_]]:
        """(rows made from some files, whether each can be read)."""
        self._met[index] = True
        places = [self._places[k] for k in index]
        return _made(places, self._manner, lambda one: self._unreadable.tried(self._manner.make, one), self._workers)

    @cached_property
    def _seconds_each(self) -> float:
        """Seconds to make one row, measured on a few."""
        few = np.linspace(0, len(self._places) - 1, min(len(self._places), _TIMED)).astype(int)
        quiet = Unreadable(skip=True, several=self._manner.several)
        places = [self._places[k] for k in few]
        for _ in range(2):  # the first time, files come from the disk and packages are imported
            begin = time.perf_counter()
            _made(places, self._manner, lambda one: quiet.tried(self._manner.make, one), self._workers)
        return (time.perf_counter() - begin) / len(few)


def sentences(rows: Iterable[Rows]) -> tuple[str, ...]:
    """How the rows of the splits are read: a sentence for each manner."""
    return tuple(dict.fromkeys(one.sentence for one in rows))


def _made(
    places: Sequence[Place], manner: Manner, make: Callable[[Any], Row | None], workers: Workers
) -> tuple[Row, npt.NDArray[np.bool_]]:
    """(rows of some files, whether each was made); those that were not are 0."""
    rows, found = np.zeros((len(places), *manner.shape), manner.kind), np.zeros(len(places), bool)

    def work(part: range) -> None:
        for k in part:
            row = make(places[k])
            if row is not None:
                rows[k], found[k] = row, True

    workers.do(work, len(places))
    return rows, found


def _free(file: Path) -> int:
    """Bytes that are free for a file."""
    return shutil.disk_usage(file.parent).free


def _header(opened: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """(shape, dtype, position of the first row) of an array in a file."""
    shape, _, kind = _HEADERS[np.lib.format.read_magic(opened)](opened)
    return shape, kind, opened.tell()


def _rows(file: Path, index: Indices) -> Row:
    """Some rows of an array in a file. They are read, not mapped: pages that are mapped count as memory of the process."""
    with file.open("rb") as opened:
        shape, kind, first = _header(opened)
        found = np.empty((len(index), *shape[1:]), kind)
        size = found[:1].nbytes
        for row, place in zip(found, index.tolist(), strict=True):
            opened.seek(first + place * size)
            if opened.readinto(row.reshape(-1).view(np.uint8).data) != size:
                raise _damaged(file)
    return found


def _damaged(file: Path) -> UserError:
    return UserError("E141", f"{file} is damaged: it ends too early", "remove it, so that it is made again")
