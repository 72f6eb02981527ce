"""The journal of a run: its events and decisions, kept in its folder; and the interface of callbacks.

Every line of `events.jsonl` carries the digest of its event. Lines that are damaged are left out when events are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mirabelle.records.annotated_toml import Origin, resolved_text
from mirabelle.run import files


@dataclass(frozen=True)
class Stop:
    """Returned by a callback to stop a training or to skip the remaining steps.

    Returned for an event "epoch" or "progress", it ends the training as early stopping would. Returned for "profile", the event
    at the end of every step, it skips all following steps. In both cases the run then writes its artifact and report as usual.

    Args:
        why: the reason, kept in the journal; for skipped steps also among the decisions in the resolved recipe.
    """

    why: str


_SEAL = f"# {files.TEXT_DIGEST}"

Callback = Callable[[Mapping[str, Any]], "Stop | None"]


def _unknown(path: tuple[str | int, ...]) -> str:
    del path
    return "given"


@dataclass
class Journal:
    """The events (`events.jsonl`) and decisions (`recipe.toml`) of a run, stored in its folder.

    Args:
        folder: of the run.
        document: the resolved recipe as plain data.
        decisions: name -> value, written into `recipe.toml` as the table [decisions].
        origin: where each value of the recipe comes from, for the comments in `recipe.toml`.
        shared: folder that several runs share for results that do not depend on the seed; None: the folder of the run itself.
        count: number of events in the folder, as far as this process knows.
    """

    folder: Path
    document: dict[str, Any] = field(default_factory=dict)
    decisions: dict[str, Any] = field(default_factory=dict)
    origin: Origin = _unknown
    shared: Path | None = None
    count: int = 0

    @property
    def cache(self) -> Path:
        """The folder for cached results, which are named by a hash and can be recomputed."""
        return self.shared or self.folder

    def append(self, event: Mapping[str, Any]) -> None:
        """Append an event to `events.jsonl` as one line of JSON.

        Raises:
            UserError: E202 if the file cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({**event, files.DIGEST: files.digest_of_data(event)}) + "\n")
            self.count += 1
        except OSError as error:
            raise files.cannot_write(self.folder / "events.jsonl", error) from error

    def mend(self) -> int:
        """Remove what a killed process left behind: temporary files, and an incomplete last line of `events.jsonl`.

        Returns:
            The number of damaged lines in `events.jsonl`.
        """
        for temporary in self.folder.rglob("*.writing"):
            temporary.unlink(missing_ok=True)
        path = self.folder / "events.jsonl"
        data = path.read_bytes() if path.is_file() else b""
        if data and not data.endswith(b"\n"):
            data = data[: data.rfind(b"\n") + 1]
            files.write(path, data)
        self.count = len(read_events(self.folder))
        return damaged_lines(self.folder)

    def write_recipe(self) -> None:
        """Write the resolved recipe with all decisions to `recipe.toml`, atomically."""
        document = {**self.document, "decisions": self.decisions} if self.decisions else self.document
        head, _, rest = resolved_text(document, self.origin).partition("\n")
        files.write_text(self.folder / "recipe.toml", f"{head}\n{_SEAL}\n{rest}")  # at the top, so that no cut removes it


class UnwrittenJournal(Journal):
    """The journal of a run in a process that is not the first: the decisions so far, to which nothing is written."""

    def append(self, event: Mapping[str, Any]) -> None:
        del event

    def mend(self) -> int:
        return 0

    def write_recipe(self) -> None:
        pass


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Read the events of a run, oldest first.

    Lines that are damaged are left out, as are incomplete lines of a killed process, to which the next one appends. Lines that
    an earlier version wrote have no digest and are read unchecked.
    """
    try:
        lines = (folder / "events.jsonl").read_text("utf-8", errors="replace").split("\n")
    except OSError:
        return []
    events = (_event(line) for line in lines)
    return [event for event in events if event is not None]


def damaged_lines(folder: Path) -> int:
    """The number of lines of the journal in the folder of a run that are not events, or do not have their digests."""
    path = folder / "events.jsonl"
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return len([line for line in lines if line]) - len(read_events(folder))


def _event(line: str) -> dict[str, Any] | None:
    """The event of a line without its digest; None if it is damaged."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or "event" not in event:
        return None
    written = files.without_digest(event)
    return event if written is None or written == files.digest_of_data(event) else None
