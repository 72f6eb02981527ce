"""How each training went, epoch by epoch, out of a run's `events.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Epoch:
    """One epoch: mean training loss, metric on validation, learning rate; None where unknown or not finite."""

    epoch: int
    loss: float | None = None
    metric: float | None = None
    lr: float | None = None


@dataclass(frozen=True)
class Curve:
    """One training: its place in the run, such as "steps/1-prune.weights", the step's name, and its epochs in order."""

    where: str
    step: str
    epochs: tuple[Epoch, ...]


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events of a run, oldest first.

    Lines that are no JSON objects are left out: a kill may tear the last line, and the resumed run writes on behind it.
    """
    try:
        lines = (folder / "events.jsonl").read_text("utf-8", errors="replace").split("\n")
    except OSError:
        return []
    events = (_event(line) for line in lines)
    return [event for event in events if event is not None]


def curves(events: Iterable[Mapping[str, Any]]) -> list[Curve]:
    """The trainings in the order in which they began; the last event of an epoch counts, as a resumed run repeats some.

    Example:
        >>> at = {"event": "epoch", "where": "steps/0-baseline"}
        >>> killed, resumed = {**at, "epoch": 1, "loss": 2.0}, {**at, "epoch": 1, "loss": 1.5}
        >>> curves([killed, resumed])
        [Curve(where='steps/0-baseline', step='0-baseline', epochs=(Epoch(epoch=1, loss=1.5, metric=None, lr=None),))]
    """
    names: dict[str, str] = {}
    found: dict[str, dict[int, Epoch]] = {}
    for event in events:
        where = str(event.get("where", ""))
        if event["event"] == "begin":
            names[where] = str(event.get("step", ""))
        elif event["event"] == "epoch" and isinstance(event.get("epoch"), int):
            number = event["epoch"]
            epoch = Epoch(number, _finite(event.get("loss")), _finite(event.get("metric")), _finite(event.get("lr")))
            found.setdefault(where, {})[number] = epoch
    return [
        Curve(where, names.get(where) or where.rpartition("/")[2], tuple(epochs[number] for number in sorted(epochs)))
        for where, epochs in found.items()
    ]


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _finite(value: object) -> float | None:
    """The number, or None: JSON, and a chart, have no place for NaN."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None  # type: ignore[arg-type]  # known to be a number
