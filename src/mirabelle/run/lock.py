"""A lock by which one process at a time writes into a folder; the operating system releases it when the process ends."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from mirabelle.errors import UserError
from mirabelle.run import files

_LOCK, _HOLDER = ".lock", ".holder.json"
NAMES = (_LOCK, _HOLDER)


class FolderLock:
    """An exclusive lock on a folder, held until `release`.

    The attribute `taken_over` tells whether the previous holder ended without releasing the lock, that is, was killed.

    Args:
        folder: created if it does not exist.

    Raises:
        UserError: E152 if another process holds the lock; E151 if the folder cannot be used; E202 if it cannot be written to.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp())
        >>> lock = FolderLock(place)
        >>> FolderLock(place)
        Traceback (most recent call last):
        ...
        mirabelle.errors.UserError: error[E152]: ... is in use by process ...
        help: wait until it ends, or choose another --out
        >>> lock.release()
    """

    def __init__(self, folder: Path) -> None:
        import filelock

        self._holder = folder / _HOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Not a singleton, so that two runs in the same process exclude each other, too.
            self._lock = filelock.FileLock(folder / _LOCK, is_singleton=False)
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            message = f"{folder} is in use by {_described(self._holder)}"
            raise UserError("E152", message, "wait until it ends, or choose another --out") from None
        except OSError as error:
            raise UserError("E151", f"{folder} cannot be used: {error.strerror}", "choose another --out") from error
        self.taken_over = self._holder.is_file()
        try:
            files.write_json(self._holder, {"process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
        except BaseException:
            self._lock.release()
            raise

    def release(self) -> None:
        """Release the lock."""
        self._holder.unlink(missing_ok=True)
        self._lock.release()


def _described(holder: Path) -> str:
    try:
        data = json.loads(holder.read_text("utf-8"))
        return f"process {data['process']} since {data['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # the file is being written or was just deleted
        return "another process"


def at_work(folder: Path) -> str | None:
    """The process that holds the lock of a folder, in words, such as "process 1234 since ..."; None if no process does."""
    import filelock

    if not (folder / _LOCK).is_file() or (folder / _LOCK).is_symlink():  # to lock a file empties it
        return None
    lock = filelock.FileLock(folder / _LOCK, is_singleton=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return _described(folder / _HOLDER)
    except OSError:
        return None
    lock.release()
    return None
