"""The folder of decoded data, and a lock by which one process at a time writes a file there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CACHE = "MIRABELLE_CACHE"  # environment variable: folder of decoded data


def cache_folder() -> Path:
    """The folder of decoded data: $MIRABELLE_CACHE, or that of the user's caches."""
    named = os.environ.get(CACHE)
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mirabelle" / "decoded"


@contextmanager
def alone(file: Path) -> Iterator[bool]:
    """A context in which no other process writes this file; who comes second waits. Its folder is created.

    Returns:
        Whether the file system has locks. Without them, two processes that begin at once both write, each under a name of its
        own, and the last one stays.

    Raises:
        OSError: if the folder cannot be created.
    """
    import filelock

    file.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(file.with_name(f"{file.name}.lock"), is_singleton=False)
    try:
        lock.acquire()
    except (NotImplementedError, OSError):
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):  # on Windows it cannot be removed while another process waits
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
