"""List the files in a tar file with their positions. Nothing is extracted, and nothing that the file says is trusted.

The formats are POSIX ustar and pax, those of GNU tar, and the old one. Python's `tarfile` ends silently at a damaged header and
reads headers of any length into memory, so headers are read here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import BinaryIO

from mirabelle.errors import UserError
from mirabelle.sources.datasets.places import Member, Shard

_BLOCK, _MOST_SIGNED = 512, 127  # some writers sum signed bytes
_MOST_HEADER = 1 << 20  # most bytes of a long name or of extended headers
_CHECKSUM = slice(148, 156)
_FILES, _WITHOUT_DATA = b"\x0007", b"123456"  # types: files; links, devices, folders and pipes
_GNU_NAME, _GNU_LINK, _PAX, _PAX_OF_ALL, _SPARSE = b"L", b"K", b"x", b"g", b"S"
_PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
_REMEDY = "fetch or write the shard again"


def members_of(shard: Shard) -> Iterator[Member]:
    """The files in a tar file, in their order; links, folders and devices are left out.

    Raises:
        UserError: E131 if the file is compressed or damaged, or has a sparse file; what comes before the damage is given first.
    """
    with shard.opened() as file:
        yield from _Headers(shard, file).members()


class _Headers:
    """The headers of a tar file."""

    def __init__(self, shard: Shard, file: BinaryIO) -> None:
        self._shard, self._file = shard, file
        self._at = 0

    def members(self) -> Iterator[Member]:
        changed: dict[str, str] = {}  # by extended headers, for the next member
        while (header := self._next_header()) is not None:
            kind = header[156:157]
            size = self._number(header[124:136])
            begin = self._at
            if kind in _WITHOUT_DATA:
                changed = {}
                continue
            if kind in (_PAX, _PAX_OF_ALL, _GNU_NAME, _GNU_LINK):
                own = self._extended(kind, size)
                changed = {**changed, **own}
                continue
            if kind == _SPARSE or any(key.startswith("GNU.sparse") for key in changed):
                raise self._damaged("it has a sparse file, which is not supported", "write it without --sparse")
            size = self._changed_size(changed, size)
            name = changed.get("path") or _name(header)
            changed = {}
            self._pass(size)
            if kind in _FILES and not name.endswith("/"):
                yield Member(self._shard, name, begin, size)

    def _next_header(self) -> bytes | None:
        """The next header; None at the end."""
        self._file.seek(self._at)
        header = self._file.read(_BLOCK)
        if self._at == 0 and header[:2] in _PACKED:
            packed = _PACKED[header[:2]]
            message = f"{self._shard.path} is compressed by {packed}; its members cannot be read one by one"
            raise UserError("E131", message, "decompress it once; images are compressed already")
        if len(header) < _BLOCK:
            raise self._damaged("it ends without the empty block that stands behind the last member")
        if not header.strip(b"\0"):
            return None
        said = self._number(header[_CHECKSUM])
        blank = header[: _CHECKSUM.start] + b" " * 8 + header[_CHECKSUM.stop :]
        if said != sum(blank) and said != sum(byte - 256 * (byte > _MOST_SIGNED) for byte in blank):
            raise self._damaged("a header has another checksum, or it is no tar file")
        self._at += _BLOCK
        return header

    def _extended(self, kind: bytes, size: int) -> dict[str, str]:
        """What an extended header says of the next member: its path and size, and that it is sparse."""
        if size > _MOST_HEADER:
            raise self._damaged(f"a header has {size:,} bytes; at most {_MOST_HEADER:,} are read")
        begin = self._at
        self._pass(size)
        self._file.seek(begin)
        data = self._file.read(size)
        if kind == _GNU_NAME:
            return {"path": _text(data.split(b"\0")[0])}
        if kind == _GNU_LINK:
            return {}
        found = self._pax(data)
        if kind == _PAX:
            return found
        return {key: value for key, value in found.items() if key.startswith("GNU.sparse")}

    def _pax(self, data: bytes) -> dict[str, str]:
        """The records of a pax header, "length key=value\\n" each."""
        found: dict[str, str] = {}
        while data.strip(b"\0"):
            digits, space, _ = data[:20].partition(b" ")
            length = int(digits) if digits.isdigit() else 0
            record = data[len(digits) + 1 : length]
            key, equals, value = record.partition(b"=")
            if not space or not equals or length > len(data) or not record.endswith(b"\n"):
                raise self._damaged("a pax header cannot be read")
            found[_text(key)] = _text(value[:-1])
            data = data[length:]
        return found

    def _changed_size(self, changed: Mapping[str, str], size: int) -> int:
        said = changed.get("size", "")
        if said and not (said.isascii() and said.isdigit() and len(said) < 20):  # noqa: PLR2004 (digits of 64 bits)
            raise self._damaged(f'a pax header has the size "{said[:20]}"')
        return int(said) if said else size

    def _pass(self, size: int) -> None:
        """Go behind the data of a member, which must be inside of the file."""
        if size > self._shard.size - self._at:
            raise self._damaged(f"a member of {size:,} bytes goes beyond its end")
        self._at += -(-size // _BLOCK) * _BLOCK

    def _number(self, field: bytes) -> int:
        """A number in octal digits, or in binary if its first bit is set."""
        if field[0] & 128:
            found = int.from_bytes(bytes([field[0] & 127]) + field[1:], "big")
            if field[0] & 64:
                raise self._damaged("a header has a negative number")
            return found
        digits = field.split(b"\0")[0].strip()
        if digits and not all(byte in b"01234567" for byte in digits):
            raise self._damaged("a header has a number that is not octal, or it is no tar file")
        return int(digits or b"0", 8)

    def _damaged(self, reason: str, remedy: str = _REMEDY) -> UserError:
        return UserError("E131", f"{self._shard.path} cannot be read at byte {self._at:,}: {reason}", remedy)


def _name(header: bytes) -> str:
    """The name in a header; in the POSIX format it may have a part in front."""
    name = header[:100].split(b"\0")[0]
    before = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return _text(before + b"/" + name if before else name)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
