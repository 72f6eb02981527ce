"""One run: its folder, seed, journal, decisions, callbacks and progress. The only holder of side effects."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from mirabelle.errors import UserError
from mirabelle.records.annotated_toml import Origin
from mirabelle.records.earlier import in_todays_names
from mirabelle.run import files
from mirabelle.run.journal import Callback, Journal, Stop, _unknown
from mirabelle.run.lock import NAMES, FolderLock

_TOLD = 3  # differences that a message holds
D = TypeVar("D", str, int, float, bool)


class Run:
    """Where a recipe's steps leave what they do.

    Args:
        folder: of the run; made when first written to.
        seed: of everything random in the run (the split of the data and the augmentation have their own).
        callbacks: called with every event, and with progress; each may return `Stop`.
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
        callbacks: Sequence[Callback] = (),
        name: str = "",
        journal: Journal | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.seed = seed
        self.callbacks = tuple(callbacks)
        self.name = name
        self.journal = journal or Journal(self.folder)
        self.lock: FolderLock | None = None

    @staticmethod
    def opened(
        folder: str | Path,
        document: dict[str, Any],
        *,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        decisions: Mapping[str, Any] | None = None,
        origin: Origin = _unknown,
    ) -> Run:
        """A run of this resolved recipe: begun (with `decisions` taken as made), or taken up where the folder holds it.

        The folder belongs to the run until `close`.

        Raises:
            UserError: E150 when the folder holds another recipe, E151 when it cannot be used, E152 when it is in use.
        """
        import torch

        folder = Path(folder)
        _check_folder(folder)
        lock = FolderLock(folder)
        try:
            run = Run(folder, seed=seed, callbacks=callbacks, journal=Journal(folder, document, origin=origin))
            run.lock = lock
            run._take_up(_earlier(folder), document, decisions or {})
            torch.set_num_threads(_threads(run.decide("threads", torch.get_num_threads)))
        except BaseException:
            lock.release()
            raise
        return run

    def _take_up(self, earlier: dict[str, Any] | None, document: dict[str, Any], decisions: Mapping[str, Any]) -> None:
        """Begin, or go on with what an earlier process has left of the same recipe."""
        if earlier is None:
            self.journal.mend()
            self.journal.decisions = dict(decisions)
            self.journal.write_recipe()
            return
        earlier = in_todays_names(earlier)
        self.journal.decisions = earlier.pop("decisions", {})
        if earlier != json.loads(json.dumps(document)):
            changed = list(_differences(earlier, json.loads(json.dumps(document)), ""))
            told = "; ".join(changed[:_TOLD]) + ("; …" if len(changed) > _TOLD else "")
            remedy = f"repeat what it was begun with ({self.folder / 'recipe.toml'} says it), or choose another --out"
            raise UserError("E150", f"{self.folder} holds another run: {told}", remedy)
        self.journal.mend()
        assert self.lock is not None, "an opened run holds its folder"
        self.event("resumed", killed=self.lock.taken_over)

    def close(self) -> None:
        """Give the folder back."""
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def within(self, name: str) -> Run:
        """The part of this run that lives in the folder `name`; journal and decisions are shared."""
        return Run(
            self.folder / name,
            seed=self.seed,
            callbacks=self.callbacks,
            name=f"{self.name}/{name}".strip("/"),
            journal=self.journal,
        )

    def event(self, kind: str, **data: Any) -> Stop | None:
        """Record that something happened, one JSON object a line in events.jsonl, and tell the callbacks."""
        event = {"time": round(time.time(), 3), "event": kind, "where": self.name, **data}
        self.journal.append(event)
        return self._tell(event)

    def progress(self, done: int, total: int, *, seconds_left: float, text: str) -> Stop | None:
        """Tell the callbacks how far the present work is; nothing is kept."""
        return self._tell(
            {"event": "progress", "where": self.name, "done": done, "total": total, "seconds_left": seconds_left, "text": text}
        )

    def _tell(self, event: Mapping[str, Any]) -> Stop | None:
        """Every callback hears of the event, which it cannot change; the first `Stop` counts."""
        answers = [callback(_read_only(event)) for callback in self.callbacks]
        return next((answer for answer in answers if isinstance(answer, Stop)), None)

    def decide(self, name: str, measure: Callable[[], D]) -> D:
        """What was decided before under this name, or what `measure` says now, written down before it is used."""
        if self.decided(name) is None:
            decision = measure()
            self.journal.decisions[self._key(name)] = decision
            self.journal.write_recipe()
            self.event("decision", name=name, value=decision)
        decided: D = self.journal.decisions[self._key(name)]
        return decided

    def decided(self, name: str) -> Any:
        """What was decided before under this name, or None."""
        return self.journal.decisions.get(self._key(name))

    def _key(self, name: str) -> str:
        return f"{self.name}/{name}".strip("/")

    def seed_for(self, *names: object) -> int:
        """A seed of its own for each use, below 2⁶³: from the run's seed, the place in the run, and `names`."""
        return int(files.digest(str((self.seed, self.name, *names)).encode()), 16) >> 1


def _differences(there: Any, here: Any, name: str) -> Iterator[str]:
    """What two recipes say differently, each difference in words."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in (*there, *(key for key in here if key not in there)):
            yield from _differences(there.get(key), here.get(key), f"{name}.{key}".lstrip("."))
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for position, (old, new) in enumerate(zip(there, here, strict=True), start=1):
            yield from _differences(old, new, f"{name}.{position}")
    elif there != here:
        yield f"{name}: {_briefly(there)} there, {_briefly(here)} here"


def _briefly(value: Any) -> str:
    return "nothing" if value is None else "a table" if isinstance(value, (Mapping, list)) else json.dumps(value)


def _read_only(value: Any) -> Any:
    """The same data in containers that cannot be changed."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: _read_only(item) for key, item in value.items()})
    return tuple(_read_only(item) for item in value) if isinstance(value, (list, tuple)) else value


def _check_folder(folder: Path) -> None:
    """Raise unless a run may begin or go on in the folder."""
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError("E151", f"{folder} is a file", "name a folder")
        if folder.is_dir() and not (folder / "recipe.toml").is_file() and _holds_other_things(folder):
            raise UserError("E150", f"{folder} is not empty and holds no run", "choose another --out")
    except OSError as error:
        raise UserError("E151", f"{folder} cannot be used: {error.strerror}", "choose another --out") from error


def _holds_other_things(folder: Path) -> bool:
    return any(path.suffix != ".writing" and path.name not in NAMES for path in folder.iterdir())


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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError("E150", f"{path} cannot be read: {error}", "choose another --out") from error
