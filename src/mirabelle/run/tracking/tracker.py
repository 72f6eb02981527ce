"""A tracker: a callback that shows a run elsewhere and cannot hurt it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from mirabelle.errors import UserError, did_you_mean
from mirabelle.run.tracking.rows import Rows, TrackedRow, journal
from mirabelle.run.tracking.tensorboard import TensorBoard
from mirabelle.run.tracking.wandb import Wandb


class Writer(Protocol):
    """Where rows go. Any call may raise; the tracker then calls `abandon` and nothing more."""

    def write(self, row: TrackedRow) -> None:
        """Take one row; it is safe from a kill when this returns, or soon after."""

    def close(self) -> None:
        """Finish what was begun."""

    def abandon(self) -> None:
        """Let go of processes and files at once."""


_WRITERS: dict[str, Callable[[Path, str], Writer]] = {"tensorboard": TensorBoard, "wandb": Wandb}


def require(name: str) -> None:
    """See that there is a tracker of this name and that its package is installed; imports nothing.

    Raises:
        UserError: E110 when there is no such tracker, E160 when its package is not installed.
    """
    if name not in _WRITERS:
        raise UserError("E110", f'there is no tracker "{name}"', did_you_mean(name, _WRITERS))
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:  # a mere folder of that name, such as a run of wandb leaves, has no origin
        message = f'tracking with "{name}" needs the package {name}, which is not installed'
        raise UserError("E160", message, f"pip install 'mirabelle[{name}]'")


def tracker_for(name: str, folder: Path, warn: Callable[[str], None]) -> Tracker:
    """A tracker of the run in `folder`, to be given to it as a callback and closed after it.

    Args:
        name: "tensorboard" (files under <folder>/tensorboard) or "wandb" (files under <folder>/wandb; sent only where an API
            key is configured or WANDB_MODE says so).
        folder: of the run; it need not exist yet.
        warn: told once, in one line, when the tracker cannot go on.

    Raises:
        UserError: E110 when there is no such tracker, E160 when its package is not installed.
    """
    require(name)
    return Tracker(name, folder, _WRITERS[name], warn)


class Tracker:
    """A callback that shows a run elsewhere.

    It begins with the first event, when the run has made its folder its own, and first shows what the run's journal holds
    already: a run that was killed, or that was not tracked before, is shown whole, each point once. Whatever goes wrong turns
    the tracker off, is told once through `warn`, and leaves the run as it is.

    Args:
        name: of the tool, for the warning.
        folder: of the run.
        begin: makes the writer, from the folder and the text of the resolved recipe.
        warn: see `tracker_for`.
    """

    def __init__(self, name: str, folder: Path, begin: Callable[[Path, str], Writer], warn: Callable[[str], None]) -> None:
        self._name = name
        self._folder = folder.absolute()
        self._begin = begin
        self._warn = warn
        self._writer: Writer | None = None
        self._rows = Rows()
        self._off = False

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show an event."""
        if self._off or event.get("event") == "progress":
            return
        with self._never_fatal():
            if self._writer is None:
                recipe = self._folder / "recipe.toml"
                self._writer = self._begin(self._folder, recipe.read_text("utf-8") if recipe.is_file() else "")
                for earlier in journal(self._folder):
                    self._show(earlier, self._writer)
            self._show(event, self._writer)  # the journal holds it already, or not yet: it is shown once

    def close(self) -> None:
        """Finish; does nothing when the tracker never began, was turned off, or is closed."""
        with self._never_fatal():
            if self._writer is not None and not self._off:
                self._writer.close()
        self._off = True

    def _show(self, event: Mapping[str, Any], writer: Writer) -> None:
        row = self._rows.row(event)
        if row is not None:
            writer.write(row)

    @contextmanager
    def _never_fatal(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 (a tool to watch a run must not end it, whatever the tool does)
            self._off = True
            if self._writer is not None:
                with suppress(Exception):
                    self._writer.abandon()
            why = " ".join(f"{type(error).__name__}: {error}".split())
            self._warn(f"tracking with {self._name} is turned off, the run goes on: {why}")
