"""Arrays in an .npz file or in the .npy files of a folder: what their headers say, and their rows without all of the others."""

from __future__ import annotations

import io
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError
from mirabelle.run.files import digest
from mirabelle.sources.datasets.cache import cache_folder, state_of, write_once
from mirabelle.sources.datasets.row_file import RowFile

Array = npt.NDArray[Any]
SUFFIX = ".npy"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_LONGEST_HEADER, _COPIED = 1 << 16, 1 << 24  # bytes
_LOCAL, _LENGTHS = 30, 26  # bytes of the header of a member of a .zip file, and the place of the lengths of its name and extras
_MOST_DEFLATED = 1032  # bytes that a byte can become at most: copies of 258 bytes, in two bits each (RFC 1951)
_REMEDY = "restore it, and do not change data that are being read"


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, of which only the header has been read.

    Args:
        path: of the file.
        member: its name in a .zip file; "" in a file of its own.
        start: position of its first value in the file; None if it is compressed.
        shape: as its header says; the file has as many bytes.
        kind: of its values.
        in_columns: whether its values are in the order of Fortran, so that its rows are not in one piece.
        checksum: CRC of its bytes in the directory of a .zip file.
    """

    path: Path
    member: str
    start: int | None
    shape: tuple[int, ...]
    kind: np.dtype[Any]
    in_columns: bool
    checksum: int | None

    @property
    def values(self) -> int:
        return int(np.prod(self.shape, dtype=object))

    @property
    def state(self) -> str:
        """What tells whether the array is the same as before, without reading all of it."""
        return digest(self.member.encode(), str(self.checksum).encode(), *state_of([self.path]))

    @property
    def named(self) -> str:
        """The array, for messages."""
        return f"{self.member} in {self.path}" if self.member else str(self.path)

    def check_sum(self) -> None:
        """Raise E131 if a member of a .zip file that is not compressed lacks its checksum; one that is has been compared."""
        if self.member and self.start is not None:
            with damage_told(self.path), zipfile.ZipFile(self.path) as archive, archive.open(self.member) as member:
                while member.read(_COPIED):
                    pass

    def whole(self) -> Array:
        """All of its values, in memory.

        Raises:
            UserError: E131 if the file is damaged.
        """
        with damage_told(self.path):
            if not self.member:
                found: Array = np.load(self.path, allow_pickle=False)
                return found
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as member:
                return np.lib.format.read_array(member, allow_pickle=False)

    def rows(self) -> RowFile:
        """Its rows. Those of an array that is compressed, or in the order of Fortran, are first written into the cache folder.

        Raises:
            UserError: E202 if there is no space for them, E131 if the file is damaged.
        """
        count, shape, size = self.shape[0], self.shape[1:], self.values * self.kind.itemsize
        if self.start is not None and not self.in_columns:
            found = self.path.stat()
            return RowFile(self.path, self.start, count, shape, self.kind, found.st_size, found.st_mtime_ns, _REMEDY)
        file = cache_folder() / f"{self.state}.rows"
        twice = 2 if self.in_columns and self.start is None else 1
        with damage_told(self.path):
            write_once(file, self._unpack, twice * size, f"the unpacked values of {self.named}")
        remedy = "remove it, and run the same command again, which unpacks the array again"
        return RowFile(file, 0, count, shape, self.kind, size, file.stat().st_mtime_ns, remedy)

    def _unpack(self, file: BinaryIO) -> None:
        if self.start is not None:
            _write_rows(self.path, self.start, self, file)
        elif not self.in_columns:
            self._write_values(file)
        else:
            with tempfile.NamedTemporaryFile(dir=cache_folder()) as values:
                self._write_values(values)  # type: ignore[arg-type]
                values.flush()
                _write_rows(Path(values.name), 0, self, file)

    def _write_values(self, file: BinaryIO) -> None:
        """Write the values of a compressed member, whose checksum is compared at its end."""
        left = self.values * self.kind.itemsize
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as member:
            _header(member)
            while part := member.read(_COPIED):
                file.write(part[:left])
                left -= min(left, len(part))
        if left:
            raise zipfile.BadZipFile(f"{self.member} ends too early")


def stored_arrays(path: Path) -> dict[str, StoredArray]:
    """The arrays in an .npz file, or in the .npy files that lie directly in a folder, by name.

    Raises:
        UserError: E131 if a file is damaged or shorter than its header says, E143 if it contains pickled objects.
    """
    found = _of_folder(path) if path.is_dir() else _of_zip(path)
    for array in found.values():
        if array.kind.hasobject:
            message = f"{array.named} contains Python objects (a pickle), which may run code, so it is not read"
            raise UserError("E143", message, "save arrays of numbers")
    return found


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Errors of a damaged file as those of the user."""
    try:
        yield
    except (ValueError, EOFError, KeyError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        raise UserError("E131", f"{path} is damaged: {error}", "save it again with numpy.savez or numpy.save") from error


def _of_folder(path: Path) -> dict[str, StoredArray]:
    found = {}
    for file in sorted(one for one in path.glob(f"*{SUFFIX}") if one.is_file() and not one.name.startswith(".")):
        with damage_told(file), file.open("rb") as opened:
            shape, in_columns, kind, start = _header(opened)
            found[file.stem] = StoredArray(file, "", start, shape, kind, in_columns, None)
        _check_size(found[file.stem], file.stat().st_size - start)
    return found


def _of_zip(path: Path) -> dict[str, StoredArray]:
    found = {}
    with damage_told(path), zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for info in archive.infolist():
            if not info.filename.endswith(SUFFIX):
                continue
            with archive.open(info) as member:
                shape, in_columns, kind, length = _header(member)
            start = None
            if info.compress_type == zipfile.ZIP_STORED:
                file.seek(info.header_offset + _LENGTHS)
                start = info.header_offset + _LOCAL + sum(struct.unpack("<HH", file.read(4))) + length
            array = StoredArray(path, info.filename, start, shape, kind, in_columns, info.CRC)
            there = info.file_size - length
            if start is not None:
                there = min(there, path.stat().st_size - start)
            elif info.compress_type == zipfile.ZIP_DEFLATED:
                there = min(there, _MOST_DEFLATED * info.compress_size)
            _check_size(array, there)
            found[info.filename.removesuffix(SUFFIX)] = array
    return found


def _check_size(array: StoredArray, there: int) -> None:
    """Raise E131 if there are fewer bytes than the header says, before memory is taken for them."""
    due = array.values * array.kind.itemsize
    if min((0, *array.shape)) < 0 or (there < due and not array.kind.hasobject):
        message = f"{array.named} is damaged: {array.kind} {array.shape} needs {due:,} bytes, and {max(0, there):,} are there"
        raise UserError("E131", message, "save it again with numpy.savez or numpy.save")


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """(shape, whether in the order of Fortran, type, length of the header) of an array; only the header is read."""
    begin = file.read(8)
    start = io.BytesIO(begin)
    version = np.lib.format.read_magic(start)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of its header is not known")
    lengths = file.read(2 if version == (1, 0) else 4)
    length = int.from_bytes(lengths, "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"its header has {length:,} bytes")
    shape, in_columns, kind = _HEADERS[version](io.BytesIO(lengths + file.read(length)))
    return shape, in_columns, kind, len(begin) + len(lengths) + length


def _write_rows(values: Path, start: int, array: StoredArray, file: BinaryIO) -> None:
    """Write the rows of an array whose values are in the order of Fortran."""
    at_once = max(1, _COPIED // max(1, array.values // array.shape[0] * array.kind.itemsize))
    for row in range(0, array.shape[0], at_once):
        columns = np.memmap(values, array.kind, "r", start, array.shape, "F")  # anew, so that few pages are mapped
        file.write(np.ascontiguousarray(columns[row : row + at_once]).data)
