"""A tracker: a callback that logs a run to another tool; its failures never end the run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from mirabelle.errors import UserError, did_you_mean
from mirabelle.run.journal import read_events
from mirabelle.run.tracking.rows import Rows, TrackedRow
from mirabelle.run.tracking.tensorboard import TensorBoard
from mirabelle.run.tracking.wandb import Wandb


class Writer(Protocol):
    """Writes rows to a tool. Any method may raise; the tracker then calls `abandon` and uses the writer no more."""

    def write(self, row: TrackedRow) -> None:
        """Write one row, so that it survives if the process is killed now or shortly after."""

    def close(self) -> None:
        """Write what is pending and close all files and processes."""

    def abandon(self) -> None:
        """Close all files and processes immediately."""


_WRITERS: dict[str, Callable[[Path, str], Writer]] = {"tensorboard": TensorBoard, "wandb": Wandb}


def require(name: str) -> None:
    """Check that a tracker exists and that its package is installed, without importing the package.

    Raises:
        UserError: E110 if there is no such tracker; E160 if its package is not installed.
    """
    if name not in _WRITERS:
        raise UserError("E110", f'there is no tracker "{name}"', did_you_mean(name, _WRITERS))
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # a plain folder of that name, such as wandb creates, has no origin
        message = f'tracking with "{name}" needs the package {name}, which is not installed'
        raise UserError("E160", message, f"pip install 'mirabelle[{name}]'")


def tracker_for(name: str, folder: Path, warn: Callable[[str], None]) -> Tracker:
    """Make a tracker for the run in `folder`. Pass it to the run as a callback and close it afterwards.

    Args:
        name: "tensorboard" (files in <folder>/tensorboard) or "wandb" (files in <folder>/wandb; data are sent only if an API
            key or WANDB_MODE is configured so).
        folder: of the run; it need not exist yet.
        warn: called once with a one-line message if the tracker fails.

    Raises:
        UserError: E110 if there is no such tracker; E160 if its package is not installed.
    """
    require(name)
    return Tracker(name, folder, _WRITERS[name], warn)


class Tracker:
    """A callback that logs the events of a run to another tool.

    The writer is made at the first event, when the run has locked its folder. It first gets the earlier events from the journal
    of the run, so that a resumed run, or one that was not tracked before, is logged completely and every point once. Any
    exception turns the tracker off and is reported once through `warn`; the run continues.

    Args:
        name: of the tool, for the warning.
        folder: of the run.
        begin: makes the writer from the folder and the text of the resolved recipe.
        warn: called once with a one-line message if the tracker fails.
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
        """Log an event."""
        if self._off or event.get("event") == "progress":
            return
        with self._never_fatal():
            if self._writer is None:
                recipe = self._folder / "recipe.toml"
                self._writer = self._begin(self._folder, recipe.read_text("utf-8") if recipe.is_file() else "")
                for earlier in read_events(self._folder):
                    self._log(earlier, self._writer)
            self._log(event, self._writer)  # `Rows` drops it if the journal contained it already

    def close(self) -> None:
        """Close the writer; does nothing if there is none or the tracker is turned off or closed already."""
        with self._never_fatal():
            if self._writer is not None and not self._off:
                self._writer.close()
        self._off = True

    def _log(self, event: Mapping[str, Any], writer: Writer) -> None:
        row = self._rows.row(event)
        if row is not None:
            writer.write(row)

    @contextmanager
    def _never_fatal(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 (no failure of a tool may end the run)
            self._off = True
            if self._writer is not None:
                with suppress(Exception):
                    self._writer.abandon()
            why = " ".join(f"{type(error).__name__}: {error}".split())
            self._warn(f"tracking with {self._name} is turned off, the run continues: {why}")
