"""What happened in a run and what was decided, in its folder; and what callbacks answer."""

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
    """What a callback returns to stop what is going on.

    In answer to an event "epoch" or "progress" the training ends, as if its patience had; in answer to "profile", which comes
    at the end of every step, the steps after it are not taken. The run goes on to its artifact and its report either way.

    Args:
        why: kept in the journal; of steps that are left out, also among the decisions of the resolved recipe.
    """

    why: str


Callback = Callable[[Mapping[str, Any]], "Stop | None"]


def _unknown(path: tuple[str | int, ...]) -> str:
    del path
    return "given"


@dataclass
class Journal:
    """What has happened (`events.jsonl`) and what was decided (`recipe.toml`), kept in the run's folder."""

    folder: Path
    document: dict[str, Any] = field(default_factory=dict)
    decisions: dict[str, Any] = field(default_factory=dict)
    origin: Origin = _unknown
    shared: Path | None = None  # where other runs keep what depends on no seed; by default in the run's own folder

    @property
    def cache(self) -> Path:
        """The folder of what a digest names, and can be computed again."""
        return self.shared or self.folder

    def append(self, event: Mapping[str, Any]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            raise files.cannot_write(self.folder / "events.jsonl", error) from error

    def mend(self) -> None:
        """Clear away what a killed process was writing: files beside their names, and a last line that is torn."""
        for beside in self.folder.rglob("*.writing"):
            beside.unlink(missing_ok=True)
        path = self.folder / "events.jsonl"
        data = path.read_bytes() if path.is_file() else b""
        if data and not data.endswith(b"\n"):
            files.write(path, data[: data.rfind(b"\n") + 1])

    def write_recipe(self) -> None:
        document = {**self.document, "decisions": self.decisions} if self.decisions else self.document
        files.write(self.folder / "recipe.toml", resolved_text(document, self.origin).encode())
