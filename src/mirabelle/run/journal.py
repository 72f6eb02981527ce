"""The journal of a run: its events and decisions, kept in its folder; and the interface of callbacks."""

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
    """

    folder: Path
    document: dict[str, Any] = field(default_factory=dict)
    decisions: dict[str, Any] = field(default_factory=dict)
    origin: Origin = _unknown
    shared: Path | None = None

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
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            raise files.cannot_write(self.folder / "events.jsonl", error) from error

    def mend(self) -> None:
        """Remove what a killed process left behind: temporary files, and an incomplete last line of `events.jsonl`."""
        for temporary in self.folder.rglob("*.writing"):
            temporary.unlink(missing_ok=True)
        path = self.folder / "events.jsonl"
        data = path.read_bytes() if path.is_file() else b""
        if data and not data.endswith(b"\n"):
            files.write(path, data[: data.rfind(b"\n") + 1])

    def write_recipe(self) -> None:
        """Write the resolved recipe with all decisions to `recipe.toml`, atomically."""
        document = {**self.document, "decisions": self.decisions} if self.decisions else self.document
        files.write(self.folder / "recipe.toml", resolved_text(document, self.origin).encode())
