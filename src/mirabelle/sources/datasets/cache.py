"""Files that are computed once from the user's data and then read: their folder, and how one process writes one of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from mirabelle.errors import UserError
from mirabelle.run.files import cannot_write

CACHE = "MIRABELLE_CACHE"  # environment variable: folder of decoded images, encoded tables and unpacked arrays
SPARE = 1.05  # of the bytes of a file must be free on the disk
_GIGA = 1e9


def cache_folder() -> Path:
    """The folder of these files: $MIRABELLE_CACHE, or that of the user's caches."""
    named = os.environ.get(CACHE)
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mirabelle" / "decoded"


def free_bytes(folder: Path) -> int:
    """The free bytes where a folder is, which is created; 0 if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def check_free(file: Path, size: int, what: str) -> None:
    """Raise E202 unless a file that does not exist yet has enough space.

    Args:
        file: to be written.
        size: in bytes.
        what: its content, for the message.
    """
    needed, free = size * SPARE, 0 if file.is_file() else free_bytes(file.parent)
    if not file.is_file() and free < needed:
        message = f"{what} need {needed / _GIGA:,.2f} GB in {file.parent}, where {free / _GIGA:,.2f} GB are free"
        raise UserError("E202", message, f"free them, or name another folder in the variable {CACHE}")


def write_once(file: Path, write: Callable[[BinaryIO], None], size: int) -> None:
    """Write a file unless it is there, while other processes that need it wait.

    It appears under its name when it is complete and on the disk. What is left of processes that were killed is removed.

    Args:
        file: to be written.
        write: writes the content into a new file, which can also be read.
        size: of the content in bytes, for the message.

    Raises:
        UserError: E202 if the file cannot be written; and what `write` raises.
    """
    import filelock

    if file.is_file():
        return
    lock = file.with_name(f"{file.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(lock, is_singleton=False):
            try:
                if not file.is_file():
                    _write(file, write)
            finally:
                with suppress(OSError):  # who waits for it finds the file, or writes it under a name of its own
                    lock.unlink()
    except OSError as error:
        named = Path(error.filename or file)
        if named.parent != file.parent and not file.is_relative_to(named):
            raise  # of the data that are read
        raise cannot_write(file, error, size) from error


def _write(file: Path, write: Callable[[BinaryIO], None]) -> None:
    for left in file.parent.glob(f"{file.name}.*.writing"):
        if not _lives(int(left.suffixes[-2][1:])):
            left.unlink(missing_ok=True)
    writing = file.with_name(f"{file.name}.{os.getpid()}.writing")
    try:
        with writing.open("w+b") as opened:
            write(opened)
            opened.flush()
            os.fsync(opened.fileno())
        writing.replace(file)
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        writing.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
