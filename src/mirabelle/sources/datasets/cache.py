"""Files that are computed once from the user's data and then read: their folder, and how one process writes one of them."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np

from mirabelle.errors import UserError
from mirabelle.run import files

CACHE = "MIRABELLE_CACHE"  # environment variable: folder of decoded images, encoded tables and unpacked arrays
SPARE = 1.05  # of the bytes of a file must be free on the disk
_GIGA = 1e9
_FILES, _PLACES, _PART = 256, 16, 1 << 16  # files of which some contents are looked at, places in each, and bytes there


def cache_folder() -> Path:
    """The folder of these files: $MIRABELLE_CACHE, or that of the user's caches."""
    named = os.environ.get(CACHE)
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mirabelle" / "decoded"


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """A context in which no other process writes this file; who comes second waits. Its folder is created.

    On a file system without locks, two processes that begin at once both write, each under a name of its own (`new_file`), and
    the file of the first one stays.

    Raises:
        OSError: if the folder cannot be created.
    """
    import filelock

    file.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(file.with_name(f"{file.name}.lock"), is_singleton=False)
    try:
        lock.acquire()
    except (NotImplementedError, OSError):
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):  # on Windows it cannot be removed while another process waits
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def new_file(file: Path) -> Iterator[BinaryIO]:
    """A context with a file that appears under its name when it is complete and on the disk, and is removed after an error.

    What is left of processes that were killed is removed.

    Raises:
        OSError: if it cannot be written.
    """
    _remove_what_is_left(file)
    writing = file.with_name(f"{file.name}.{os.getpid()}.{uuid4().hex}.{_here()}.writing")
    try:
        with writing.open("x+b") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        if not file.is_file():  # who finds no locks may be second, and others may read the first file by now
            writing.replace(file)
        files.sync_folder(file.parent)
    finally:
        writing.unlink(missing_ok=True)


def write_once(file: Path, write: Callable[[BinaryIO], None], size: int, what: str) -> None:
    """Write a file unless it is there, while other processes that need it wait.

    Args:
        file: to be written.
        write: writes the content into a new file, which can also be read.
        size: bytes that are needed.
        what: the content, for messages.

    Raises:
        UserError: E202 if there is no space for the file, or it cannot be written; and what `write` raises.
    """
    if file.is_file():
        return
    try:
        with alone(file):
            if not file.is_file():
                _check_free(file, size, what)
                with new_file(file) as opened:
                    write(opened)
    except OSError as error:
        named = Path(error.filename or file)
        if named.parent != file.parent and not file.is_relative_to(named):
            raise  # of the data that are read
        raise files.cannot_write(file, error, size) from error


def state_of(paths: Sequence[Path]) -> Iterator[bytes]:
    """What tells whether files are the same as before: their names, sizes and times of change, and parts of some of them.

    Of at most 256 files, 16 places are looked at, among them the end, where a .parquet file has the extremes of its columns.
    """
    try:
        for path in paths:
            found = path.stat()
            yield f"{path.resolve()} {found.st_size} {found.st_mtime_ns}".encode()
        for k in np.linspace(0, len(paths) - 1, min(len(paths), _FILES)).astype(int):
            with paths[k].open("rb") as file:
                end = max(0, file.seek(0, 2) - _PART)
                for place in sorted(set(np.linspace(0, end, _PLACES).astype(int).tolist())):
                    file.seek(place)
                    yield file.read(_PART)
    except FileNotFoundError as error:
        raise gone(Path(error.filename)) from error


def gone(path: Path) -> UserError:
    """The error for a file of the data that was there before."""
    return UserError("E130", f"{path} is gone since it was first read", "restore it, and run the same command again")


def remembered(key: str, compute: Callable[[], Any]) -> Any:
    """A value of plain data that is computed once and kept in the folder under its key, as far as that can be written."""
    file = cache_folder() / f"{key}.json"
    with suppress(UserError, KeyError, TypeError):
        return files.read_json(file)["value"]
    value = compute()
    with suppress(UserError):
        files.write_json(file, {"value": value})
    return value


def _check_free(file: Path, size: int, what: str) -> None:
    needed, free = size * SPARE, shutil.disk_usage(file.parent).free
    if free < needed:
        message = f"{what} need {needed / _GIGA:,.2f} GB in {file.parent}, where {free / _GIGA:,.2f} GB are free"
        raise UserError("E202", message, f"free them, or name another folder in the variable {CACHE}")


def _remove_what_is_left(file: Path) -> None:
    for left in file.parent.glob(f"{file.name}.*.{_here()}.writing"):  # of this machine: others have numbers of their own
        if not _lives(int(left.name.split(".")[-4])):
            left.unlink(missing_ok=True)


def _here() -> str:
    """The name of this machine, or container, without dots."""
    return socket.gethostname().replace(".", "-") or "here"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
