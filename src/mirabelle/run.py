"""One run: its folder, seed, journal, decisions and progress. The only holder of side effects."""

from __future__ import annotations

import json
import os
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
import torch

from mirabelle import files
from mirabelle.errors import UserError

D = TypeVar("D", str, int, float, bool)
Listener = Callable[[Mapping[str, Any]], None]


def silent(event: Mapping[str, Any]) -> None:
    """A listener that shows nothing."""


@dataclass
class Journal:
    """What has happened (`events.jsonl`) and what was decided (`recipe.toml`), kept in the run's folder."""

    folder: Path
    document: dict[str, Any] = field(default_factory=dict)
    decisions: dict[str, Any] = field(default_factory=dict)

    def append(self, event: Mapping[str, Any]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            raise UserError(
                "E202", f"cannot write {error.filename}: {error.strerror}", "free space, or another folder"
            ) from error

    def write_recipe(self) -> None:
        document = {**self.document, "decisions": self.decisions} if self.decisions else self.document
        files.write(self.folder / "recipe.toml", tomli_w.dumps(document).encode())


class Run:
    """Where a recipe's steps leave what they do.

    Args:
        folder: of the run; made when first written to.
        seed: of everything random in the run (the split of the data and the augmentation have their own).
        listener: called with every event, and with progress.
        name: where in the run this is, such as "steps/1-prune.weights"; "" at the top.

    Example:
        >>> import tempfile
        >>> run = Run(tempfile.mkdtemp(), seed=3)
        >>> run.decide("width", lambda: 8), run.decide("width", lambda: 9)
        (8, 8)
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        seed: int = 0,
        listener: Listener = silent,
        name: str = "",
        journal: Journal | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.seed = seed
        self.listener = listener
        self.name = name
        self.journal = journal or Journal(self.folder)

    @staticmethod
    def opened(
        folder: str | Path,
        document: dict[str, Any],
        *,
        seed: int = 0,
        listener: Listener = silent,
        decisions: Mapping[str, Any] | None = None,
    ) -> Run:
        """A run of this resolved recipe: begun (with `decisions` taken as made), or taken up where the folder holds it.

        Raises:
            UserError: E150 when the folder holds another recipe, E151 when it cannot be used.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise UserError("E151", f"{folder} is a file", "name a folder")
        earlier = _earlier(folder)
        run = Run(folder, seed=seed, listener=listener, journal=Journal(folder, document))
        if earlier is not None:
            run.journal.decisions = earlier.pop("decisions", {})
            if earlier != json.loads(json.dumps(document)):
                changed = sorted(key for key in {*earlier, *document} if earlier.get(key) != document.get(key))
                raise UserError(
                    "E150",
                    f"{folder} holds another run: {', '.join(changed)} differ",
                    "choose another --out, or remove that folder",
                )
            run.event("resumed")
        elif folder.is_dir() and any(path.suffix != ".writing" for path in folder.iterdir()):
            raise UserError("E150", f"{folder} is not empty and holds no run", "choose another --out")
        else:
            run.journal.decisions = dict(decisions or {})
            run.journal.write_recipe()
        torch.set_num_threads(_threads(run.decide("threads", torch.get_num_threads)))
        return run

    def within(self, name: str) -> Run:
        """The part of this run that lives in the folder `name`; journal and decisions are shared."""
        return Run(
            self.folder / name,
            seed=self.seed,
            listener=self.listener,
            name=f"{self.name}/{name}".strip("/"),
            journal=self.journal,
        )

    def event(self, kind: str, **data: Any) -> None:
        """Record that something happened; one JSON object a line in events.jsonl."""
        event = {"time": round(time.time(), 3), "event": kind, "where": self.name, **data}
        self.journal.append(event)
        self.listener(event)

    def progress(self, done: int, total: int, *, seconds_left: float, text: str) -> None:
        """Tell the listener how far the present work is; nothing is kept."""
        self.listener(
            {"event": "progress", "where": self.name, "done": done, "total": total, "seconds_left": seconds_left, "text": text}
        )

    def decide(self, name: str, measure: Callable[[], D]) -> D:
        """What was decided before under this name, or what `measure` says now, written down before it is used."""
        key = f"{self.name}/{name}".strip("/")
        if key not in self.journal.decisions:
            self.journal.decisions[key] = measure()
            self.journal.write_recipe()
            self.event("decision", name=name, value=self.journal.decisions[key])
        decided: D = self.journal.decisions[key]
        return decided

    def seed_for(self, *names: object) -> int:
        """A seed of its own for each use, below 2⁶³: from the run's seed, the place in the run, and `names`."""
        return int(files.digest(str((self.seed, self.name, *names)).encode()), 16) >> 1


def environment() -> dict[str, Any]:
    """Versions, processor and threads: the conditions of every number of the run."""
    import platform
    from importlib.metadata import version

    packages = ("mirabelle", "torch", "numpy", "onnx", "onnxscript", "onnxruntime", "constriction", "scikit-learn")
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: version(name) for name in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def _threads(decided: object) -> int:
    if not isinstance(decided, int) or decided < 1:
        raise UserError("E103", f"decisions.threads must be a whole number from 1; got {decided!r}", "mend it, or leave it out")
    return decided


def _earlier(folder: Path) -> dict[str, Any] | None:
    path = folder / "recipe.toml"
    if not path.is_file():
        return None
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError("E150", f"{path} cannot be read: {error}", "choose another --out") from error
