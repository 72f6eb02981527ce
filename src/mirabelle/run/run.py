"""The class `Run`: folder, seed, journal, decisions, callbacks and progress of a compression."""

from __future__ import annotations

import json
import os
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from mirabelle.errors import UserError
from mirabelle.records.annotated_toml import Origin
from mirabelle.records.earlier import in_todays_names
from mirabelle.run import files
from mirabelle.run.code import EVENT, Code, compared, told
from mirabelle.run.journal import Callback, Journal, Stop, UnwrittenJournal, _unknown
from mirabelle.run.lock import NAMES, FolderLock
from mirabelle.run.process_group import agreed

_MAX_DIFFERENCES = 3  # listed in an error message
_READING = ("cache", "workers")  # settings of data from files that say how they are read
PROGRAM = "program"  # the part of the fingerprint that identifies code
D = TypeVar("D", str, int, float, bool)


class Run:
    """The context in which the steps of a recipe work: output folder, random seeds, journal, decisions and callbacks.

    Args:
        folder: of the run; created when something is first written.
        seed: of all randomness in the run, except data splits and augmentation, which have seeds of their own.
        callbacks: called with every event and with progress; each may return `Stop`.
        name: of this part of the run, such as "steps/1-prune.weights"; "" for the whole run.
        journal: events and decisions; None: a new journal in `folder`.

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
        self._threads_before: int | None = None

    @staticmethod
    def opened(
        folder: str | Path,
        document: dict[str, Any],
        *,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        decisions: Mapping[str, Any] | None = None,
        origin: Origin = _unknown,
        code: Code | None = None,
    ) -> Run:
        """Start a run of a resolved recipe, or resume it if the folder contains a run of the same recipe.

        Until `close` the folder is locked, and torch computes with the number of threads of the run: the one that it was
        started with.

        Args:
            folder: of the run.
            document: the resolved recipe as plain data.
            seed: of the run.
            callbacks: called with every event and with progress.
            decisions: decisions of an earlier run to be reproduced; ignored when resuming.
            origin: where each value of the recipe comes from, for the comments in `recipe.toml`.
            code: what the run computes; its digest becomes part of the fingerprint in the recipe.

        Raises:
            UserError: E150 if the folder contains a run of another recipe or of other code, or other files; E151 if it cannot
                be used; E152 if another process works in it; E103 if `decisions` contains no valid number of threads.
        """
        import torch

        folder = Path(folder)
        _check_folder(folder)
        if code is not None:
            document = {**document, "fingerprint": {**document.get("fingerprint", {}), PROGRAM: str(code)}}
        run = Run(folder, seed=seed, callbacks=callbacks, journal=Journal(folder, document, origin=origin))
        run.lock = FolderLock(folder)
        run._threads_before = torch.get_num_threads()
        try:
            run._start_or_resume(_recipe_in(folder), document, decisions or {}, code)
            torch.set_num_threads(_threads(run.decide("threads", torch.get_num_threads)))
            if code is not None and code not in told(run.journal):
                run.event(EVENT, python=code.python, code=code.digest, parts=dict(code.parts))
        except BaseException:
            run.close()
            raise
        return run

    def _start_or_resume(
        self, earlier: dict[str, Any] | None, document: dict[str, Any], decisions: Mapping[str, Any], code: Code | None
    ) -> None:
        """Start a new run if `earlier` is None; otherwise check that it is the same recipe and resume.

        Args:
            earlier: content of `recipe.toml` in the folder, or None.
            document: the resolved recipe to run now.
            decisions: used only for a new run.
            code: what the run computes.
        """
        if earlier is None:
            self.journal.mend()
            self.journal.decisions = dict(decisions)
            self.journal.write_recipe()
            return
        earlier = in_todays_names(earlier)
        self.journal.decisions = earlier.pop("decisions", {})
        here = json.loads(json.dumps(document))
        if not same_run(earlier, here):
            summary = differences(_without_program(earlier), _without_program(here))
            remedy = f"use the settings with which it was started (see {self.folder / 'recipe.toml'}), or choose another --out"
            raise UserError("E150", f"{self.folder} contains another run: {summary}", remedy)
        unsure = self._compare_code(earlier.get("fingerprint", {}).get(PROGRAM), code)
        lost = self.journal.mend()
        assert self.lock is not None, "an opened run holds the lock on its folder"
        self.event("resumed", killed=self.lock.taken_over)
        if lost:
            text = f"{lost} damaged lines of events.jsonl are left out; learning curves may lack epochs"
            self.event("warning", text=text)
        if unsure:
            self.event("warning", text=unsure)

    def _compare_code(self, before: str | None, code: Code | None) -> str:
        """Check that this process computes what the earlier ones did; a sentence if that cannot be said.

        Args:
            before: the code with which the run was started; None if an earlier version of Mirabelle started it.
            code: that of this process.
        """
        known = [*([Code.of(before)] if before else []), *told(self.journal)]
        if code is None or not known:
            return ""
        unsure = compared(self.folder, known, code)
        self.journal.document["fingerprint"][PROGRAM] = str(known[0])
        return unsure

    def close(self) -> None:
        """Release the lock on the folder, and set the number of threads of torch that the process had before `opened`."""
        if self._threads_before is not None:
            import torch

            torch.set_num_threads(self._threads_before)
            self._threads_before = None
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def within(self, name: str) -> Run:
        """The part of this run in the subfolder `name`. It shares journal and callbacks; its decisions are named "name/..."."""
        return Run(
            self.folder / name,
            seed=self.seed,
            callbacks=self.callbacks,
            name=f"{self.name}/{name}".strip("/"),
            journal=self.journal,
        )

    def event(self, kind: str, **data: Any) -> Stop | None:
        """Append an event to `events.jsonl` and call the callbacks with it.

        Args:
            kind: of the event, such as "epoch".
            data: further JSON-compatible fields.

        Returns:
            The first `Stop` that a callback returned, or None.
        """
        event = {"time": round(time.time(), 3), "event": kind, "where": self.name, **data}
        self.journal.append(event)
        return self._notify(event)

    def working(self, text: str) -> None:
        """Tell the callbacks, as progress of 0 out of 1, what begins now and may take seconds; nothing is written."""
        self.progress(0, 1, seconds_left=0.0, text=text)

    def progress(self, done: int, total: int, *, seconds_left: float, text: str) -> Stop | None:
        """Call the callbacks with the progress of the current work; nothing is written to the journal.

        Args:
            done: completed units of work, out of `total`.
            total: units of work.
            seconds_left: estimated remaining time.
            text: describes the work.

        Returns:
            The first `Stop` that a callback returned, or None.
        """
        return self._notify(
            {"event": "progress", "where": self.name, "done": done, "total": total, "seconds_left": seconds_left, "text": text}
        )

    def _notify(self, event: Mapping[str, Any]) -> Stop | None:
        """Call every callback with a read-only copy of the event and return the first `Stop`."""
        answers = [callback(_read_only(event)) for callback in self.callbacks]
        return next((answer for answer in answers if isinstance(answer, Stop)), None)

    def decide(self, name: str, measure: Callable[[], D]) -> D:
        """The decision recorded under `name`; without one, call `measure`, record its result before it is used, and return it.

        A resumed or repeated run thus uses the same value, even if a new measurement would give another one.

        If several processes compute together, the first one measures for all.
        """
        if self.decided(name) is None:
            decision = agreed(measure)
            self.journal.decisions[self._key(name)] = decision
            self.journal.write_recipe()
            self.event("decision", name=name, value=decision)
        value: D = self.journal.decisions[self._key(name)]
        return value

    def decide_anew(self, name: str, decision: float | str) -> None:
        """Record a decision in the place of an earlier one that has turned out wrong."""
        self.journal.decisions[self._key(name)] = decision
        self.journal.write_recipe()
        self.event("decision", name=name, value=decision)

    def decided(self, name: str) -> Any:
        """The decision recorded under `name`, or None."""
        return self.journal.decisions.get(self._key(name))

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process, the run has its decisions and seeds, but writes nothing and has no callbacks."""
        journal = self.journal
        kept = UnwrittenJournal(journal.folder, journal.document, journal.decisions, shared=journal.shared)
        return _taking_part, (self.folder, self.seed, self.name, kept)

    def _key(self, name: str) -> str:
        return f"{self.name}/{name}".strip("/")

    def seed_for(self, *names: object) -> int:
        """A seed below 2⁶³, derived by hashing from the seed of the run, the name of this part of it, and `names`."""
        return int(files.digest(str((self.seed, self.name, *names)).encode()), 16) >> 1


def _taking_part(folder: Path, seed: int, name: str, journal: Journal) -> Run:
    return Run(folder, seed=seed, name=name, journal=journal)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """A context in which torch computes with a number of threads; None leaves it as it is."""
    import torch

    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def threads_of_run(folder: Path, decisions: Mapping[str, Any]) -> int | None:
    """The number of threads of the run in a folder, or of the decisions that a new run there adopts; None if none is known.

    Raises:
        UserError: E141 or E150 if the recipe in the folder cannot be read; E103 if the number is none.
    """
    known = known_decisions(folder, decisions)
    return _threads(known["threads"]) if "threads" in known else None


def known_decisions(folder: Path, decisions: Mapping[str, Any]) -> Mapping[str, Any]:
    """The decisions of the run in a folder; without a run there those that a new run adopts."""
    earlier = _recipe_in(folder)
    known: Mapping[str, Any] = decisions if earlier is None else earlier.get("decisions", {})
    return known


def same_run(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether two resolved recipes are those of one run, whatever their decisions, the code of their models, and how data from
    files are read (settings `cache` and `workers`).

    Args:
        there: as it was written, maybe by an earlier version.
        here: as plain data.
    """
    plain = [in_todays_names(json.loads(json.dumps(one))) for one in (there, here)]
    for one in plain:
        one.pop("decisions", None)
    return _without_program(_without_reading(plain[0])) == _without_program(_without_reading(plain[1]))


def _without_reading(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe without the settings that say how data from files are read, and not what is read."""
    task = document.get("task")
    if not isinstance(task, Mapping) or ":" in str(task.get("data")).removeprefix(
        "data:"
    ):  # arguments of a function may have any names
        return document
    arguments = {name: value for name, value in (task.get("arguments") or {}).items() if name not in _READING}
    return {**document, "task": {**task, "arguments": arguments}}


def _without_program(document: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without the part of its fingerprint that identifies code, which is compared by itself."""
    return {
        key: {name: text for name, text in table.items() if name != PROGRAM} if key == "fingerprint" else table
        for key, table in document.items()
    }


def differences(there: Any, here: Any) -> str:
    """The first differences between plain data of an earlier run and of this one, each as "name: old there, new here"."""
    found = list(_differences(there, here, ""))
    return "; ".join(found[:_MAX_DIFFERENCES]) + ("; …" if len(found) > _MAX_DIFFERENCES else "")


def _differences(there: Any, here: Any, name: str) -> Iterator[str]:
    """The differences between two recipes, each as "name: old there, new here"."""
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


def tell_working(callbacks: Sequence[Callback], text: str) -> None:
    """Tell callbacks what begins before a run has been opened, as `Run.working` does."""
    for callback in callbacks:
        callback(_read_only({"event": "progress", "where": "", "done": 0, "total": 1, "seconds_left": 0.0, "text": text}))


def _read_only(value: Any) -> Any:
    """A copy of the data in immutable containers."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: _read_only(item) for key, item in value.items()})
    return tuple(_read_only(item) for item in value) if isinstance(value, (list, tuple)) else value


def _check_folder(folder: Path) -> None:
    """Raise unless a run may be started or resumed in the folder."""
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError("E151", f"{folder} is a file", "name a folder")
        if folder.is_dir() and not (folder / "recipe.toml").is_file() and _has_other_files(folder):
            raise UserError("E150", f"{folder} is not empty and contains no run", "choose another --out")
    except OSError as error:
        raise UserError("E151", f"{folder} cannot be used: {error.strerror}", "choose another --out") from error


def _has_other_files(folder: Path) -> bool:
    return any(path.suffix != ".writing" and path.name not in NAMES for path in folder.iterdir())


def _threads(value: object) -> int:
    if not isinstance(value, int) or value < 1:
        raise UserError(
            "E103", f"decisions.threads must be a whole number from 1; got {value!r}", "correct it, or leave it out"
        )
    return value


def _recipe_in(folder: Path) -> dict[str, Any] | None:
    path = folder / "recipe.toml"
    if not os.path.isfile(path):  # noqa: PTH113 (False, too, for a name that no file can have)
        return None
    try:
        return tomllib.loads(files.read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise UserError("E150", f"{path} cannot be read: {error}", "choose another --out") from error
