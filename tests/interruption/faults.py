"""What the harness does inside a forked run: checkpoints that come often, and death at a numbered instant.

Instants are numbered in the order in which a run meets them:

    open, rename, remove    right before the run opens a file of its folder to write, renames one or removes one
    torn                    what was written is cut to half its length where it should have been flushed to disk
    renamed                 right after a rename
    torn-line               the last line of events.jsonl is cut to half its length before the run does anything else

An order without a `kill_at` dies at none; with `points` the instants are written there, one a line.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_REMOVALS = ("os.remove", "os.truncate", "os.rmdir")
ASKED_TO_STOP = (signal.SIGTERM, signal.SIGINT)


def install(order: dict[str, Any]) -> None:
    """Arm this process as its order says; only ever called in a fork that runs one command and ends."""
    if order.get("every"):
        _checkpoint_every(order["every"])
    watch = _Watch(Path(order["folder"]).resolve(), order.get("kill_at"), order.get("points"))
    sys.addaudithook(watch)
    os.fsync = watch.before_fsync(os.fsync)
    os.replace = watch.after_rename(os.replace)


class _Watch:
    """Counts instants and dies at the one that was ordered."""

    def __init__(self, folder: Path, kill_at: int | None, points: str | None) -> None:
        self._inside = f"{folder}{os.sep}"
        self._kill_at, self._count = kill_at, 0
        self._points = None if points is None else os.open(points, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._last_opened = ""
        self._appended = False
        self._deaf = True

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """An audit hook: every way in which Python touches a file comes by here first."""
        if self._deaf and callable(signal.getsignal(signal.SIGTERM)):
            # Only from here on does the command answer signals; those that came since the fork have waited.
            self._deaf = False
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKED_TO_STOP)
        if event == "open" and _writes(args[1], args[2]) and self._mine(args[0]):
            self._line_is_out()
            self._at("open", args[0])
            self._last_opened, self._appended = str(args[0]), "a" in (args[1] or "")
        elif event == "os.rename" and self._mine(args[1]):
            self._line_is_out()
            self._at("rename", args[1])
        elif event in _REMOVALS and self._mine(args[0]):
            self._line_is_out()
            self._at("remove", args[0])

    def before_fsync(self, fsync: Callable[[int], None]) -> Callable[[int], None]:
        def torn(fd: int) -> None:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and self._mine(self._last_opened):
                self._at("torn", self._last_opened, lambda: os.ftruncate(fd, status.st_size // 2))
            fsync(fd)

        return torn

    def after_rename(self, rename: Callable[..., None]) -> Callable[..., None]:
        def renamed(source: Any, target: Any, **keywords: Any) -> None:
            rename(source, target, **keywords)
            if self._mine(target):
                self._at("renamed", target)

        return renamed

    def _line_is_out(self) -> None:
        if self._appended:
            self._appended = False
            self._at("torn-line", self._last_opened, lambda: _tear_last_line(Path(self._last_opened)))

    def _at(self, kind: str, path: Any, damage: Callable[[], None] = lambda: None) -> None:
        self._count += 1
        if self._points is not None:
            os.write(self._points, f"{kind} {os.path.relpath(path, self._inside)}\n".encode())
        if self._count == self._kill_at:
            self._kill_at = None
            damage()
            os.kill(os.getpid(), signal.SIGKILL)

    def _mine(self, path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.path.abspath(path).startswith(self._inside)  # noqa: PTH100


def _writes(mode: str | None, flags: int) -> bool:
    return bool(set(mode or "") & set("wax+")) or bool(flags & (os.O_WRONLY | os.O_RDWR))


def _tear_last_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    os.truncate(path, sum(map(len, lines)) - (len(lines[-1]) + 1) // 2)


def _checkpoint_every(calls: int) -> None:
    """A checkpoint is due when it was asked for so many times, whatever the clock says: a run of a second has no other."""
    from mirabelle.training.checkpoint import Checkpoint

    write = Checkpoint.write

    def due(self: Any) -> bool:
        self.asked = getattr(self, "asked", 0) + 1
        return self.asked >= calls

    def written(self: Any, *arguments: Any) -> None:
        write(self, *arguments)
        self.asked = 0

    Checkpoint.due = property(due)  # type: ignore[assignment,method-assign]
    Checkpoint.write = written  # type: ignore[method-assign]
