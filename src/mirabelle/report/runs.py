"""The runs in a folder: what each was asked for, how far it is, and what it has reached."""

from __future__ import annotations

import dataclasses
import math
import os
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mirabelle.errors import UserError
from mirabelle.report.document import Report, read_report
from mirabelle.report.progress import progress_of
from mirabelle.run import files
from mirabelle.run.lock import at_work

_EVENTS, _RECIPE, _REPORT = "events.jsonl", "recipe.toml", "report.json"
_DEEPEST = 8  # folders below the given one


@dataclass(frozen=True)
class RunSummary:
    """A run in a few words.

    Args:
        folder: of the run, relative to the folder that was searched.
        state: "goal met", "goal missed", "gate failed", "running", "stopped" or "damaged"; of the runs of a comparison
            "compared", and "trained" for the model from which they start.
        detail: what is missed, failed, or going on; empty if there is nothing to say.
        goal: the conditions that the result should meet, as in the recipe.
        metric: name of the metric.
        values: the metric before and after, on the test data; of an unfinished run after its last step, on the validation data.
        packed: bytes of the packed file, before and after.
        milliseconds: median latency, before and after.
        changed: seconds since 1970 of the last change.
    """

    folder: str
    state: str
    detail: str = ""
    goal: Mapping[str, Any] = field(default_factory=dict)
    metric: str = ""
    values: tuple[float | None, float | None] = (None, None)
    packed: tuple[int | None, int | None] = (None, None)
    milliseconds: tuple[float | None, float | None] = (None, None)
    changed: float = 0.0

    def to_data(self) -> dict[str, Any]:
        """The summary as data for JSON."""
        told = {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()}
        return {**told, "changed": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(self.changed))}


def runs_in(folder: Path) -> list[RunSummary]:
    """The runs in a folder and in the folders below it, by name; links are not followed.

    Raises:
        UserError: E130 if there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise UserError("E130", f"{folder} is not a folder", "give the folder that contains the folders of your runs")
    found = [_summary(place, folder) for place in sorted(_places(folder, _DEEPEST))]
    if not found:
        raise UserError("E130", f"{folder} contains no run", "`mirabelle run` writes into runs/, or where --out says")
    return found


def _places(folder: Path, deepest: int) -> Iterator[Path]:
    """The folders of runs; nothing is looked for inside a run."""
    try:
        if (folder / _EVENTS).is_file() and (folder / _RECIPE).is_file():
            yield folder
            return
        if not deepest:
            return
        below = [entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:  # a folder that may not be read has no runs to show
        return
    for path in below:
        yield from _places(Path(path), deepest - 1)


def _summary(place: Path, within: Path) -> RunSummary:
    name = str(place.relative_to(within))
    changed = 0.0
    try:
        changed = (place / _EVENTS).stat().st_mtime
        if (place / _REPORT).is_file():
            return dataclasses.replace(_of_report(read_report(place)), folder=name, changed=changed)
        return dataclasses.replace(_of_unfinished(place), folder=name, changed=changed)
    except UserError as error:
        return RunSummary(name, "damaged", error.errors[0].message, changed=changed)
    except OSError as error:
        return RunSummary(name, "damaged", f"{error.filename} cannot be read: {error.strerror}", changed=changed)


def _of_report(report: Report) -> RunSummary:
    failed = [name for name, gate in report.gates.items() if not gate.passed]
    state = "gate failed" if failed else "goal met" if report.goal.met else "goal missed"
    detail = ", ".join(failed) if failed else "; ".join(map(str, report.goal.shortfalls))
    start, end = report.start, report.end
    metrics, times = (start.metric, end.metric), (start.latency_ms, end.latency_ms)
    return RunSummary(
        "",
        state,
        detail,
        _plain(report.goal.asked),
        end.metric.name if end.metric is not None else "",
        (_value(metrics[0]), _value(metrics[1])),
        (start.size_bytes.packed, end.size_bytes.packed),
        (_median(times[0]), _median(times[1])),
    )


def _of_unfinished(place: Path) -> RunSummary:
    progress, worker = progress_of(place), at_work(place)
    epoch = "" if progress.epoch is None else f", epoch {progress.epoch}/{progress.epochs}"
    steps = f"{len(progress.done)} of {len(progress.done) + len(progress.ahead)} steps done; {progress.now}{epoch}"
    recipe = tomllib.loads(files.read_text(place / _RECIPE))
    goal = recipe.get("goal")
    last = progress.done[-1].profile if progress.done else None
    metric = None if last is None else last.metric
    state = "stopped" if worker is None else "running"
    if worker is None and not progress.ahead:  # of a comparison, whose runs have no report of their own
        state = "trained" if not recipe.get("step") else "compared" if _judged(place) else state
    if worker is not None:
        steps = f"{steps}; {worker}"
    return RunSummary(
        "",
        state,
        "" if state in ("trained", "compared") else steps,
        _plain(goal),
        "" if metric is None else metric.name,
        (None, _value(metric)),
        (None, None if last is None else last.size_bytes.packed),
    )


def _judged(place: Path) -> bool:
    return any((place / f"{split}.safetensors").is_file() for split in ("validation", "test"))


def _plain(goal: Any) -> dict[str, Any]:
    """What a goal asks, as numbers and texts."""
    asked = goal.items() if isinstance(goal, Mapping) else ()
    return {
        str(key): value if isinstance(value, (int, float, str)) else str(value) for key, value in asked if value is not None
    }


def _value(metric: Any) -> float | None:
    return None if metric is None or not math.isfinite(metric.value) else float(metric.value)


def _median(latency: Any) -> float | None:
    return None if latency is None else float(latency.median)
