"""One process in a folder at a time. The system itself gives the lock back when its holder ends, however it ends."""

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
    """The right to write into a folder.

    Args:
        folder: made when it is not there.

    Raises:
        UserError: E152 when another process holds it, E151 when the folder cannot be used, E202 when nothing can be written.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp())
        >>> lock = FolderLock(place)
        >>> FolderLock(place)
        Traceback (most recent call last):
        ...
        mirabelle.errors.UserError: error[E152]: ... is in use by process ...
        help: wait until it has ended, or choose another --out
        >>> lock.release()
    """

    def __init__(self, folder: Path) -> None:
        import filelock

        self._holder = folder / _HOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Not a singleton: two runs of one process in one folder exclude each other, too.
            self._lock = filelock.FileLock(folder / _LOCK, is_singleton=False)
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            message = f"{folder} is in use by {_described(self._holder)}"
            raise UserError("E152", message, "wait until it has ended, or choose another --out") from None
        except OSError as error:
            raise UserError("E151", f"{folder} cannot be used: {error.strerror}", "choose another --out") from error
        self.taken_over = self._holder.is_file()
        try:
            files.write_json(self._holder, {"process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
        except BaseException:
            self._lock.release()
            raise

    def release(self) -> None:
        """Give the folder back."""
        self._holder.unlink(missing_ok=True)
        self._lock.release()


def _described(holder: Path) -> str:
    try:
        data = json.loads(holder.read_text("utf-8"))
        return f"process {data['process']} since {data['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # its holder is only now writing it, or has just ended
        return "another process"


def at_work(folder: Path) -> str | None:
    """Who works in a folder at this moment, in words; None when nobody does."""
    import filelock

    if not (folder / _LOCK).is_file():
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
