"""The learning curve of each training, read from `events.jsonl` of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mirabelle.model.left_alone import LeftAlone
from mirabelle.report.findings import Left, StepSpeed


@dataclass(frozen=True)
class Epoch:
    """One epoch: mean training loss, validation metric and learning rate; None if unknown or not finite."""

    epoch: int
    loss: float | None = None
    metric: float | None = None
    lr: float | None = None


@dataclass(frozen=True)
class Curve:
    """One training: its folder within the run, such as "steps/1-prune.weights", the step's name, and its epochs in order."""

    where: str
    step: str
    epochs: tuple[Epoch, ...]


def curves(events: Iterable[Mapping[str, Any]]) -> list[Curve]:
    """The trainings in the order in which they started. A resumed run repeats some epochs; the last event of each counts.

    Example:
        >>> at = {"event": "epoch", "where": "steps/0-baseline"}
        >>> killed, resumed = {**at, "epoch": 1, "loss": 2.0}, {**at, "epoch": 1, "loss": 1.5}
        >>> curves([killed, resumed])
        [Curve(where='steps/0-baseline', step='0-baseline', epochs=(Epoch(epoch=1, loss=1.5, metric=None, lr=None),))]
    """
    names: dict[str, str] = {}
    epochs_of: dict[str, dict[int, Epoch]] = {}
    for event in events:
        where = str(event.get("where", ""))
        if event["event"] == "begin":
            names[where] = str(event.get("step", ""))
        elif event["event"] == "epoch" and isinstance(event.get("epoch"), int):
            number = event["epoch"]
            epoch = Epoch(number, _finite(event.get("loss")), _finite(event.get("metric")), _finite(event.get("lr")))
            epochs_of.setdefault(where, {})[number] = epoch
    return [
        Curve(where, names.get(where) or where.rpartition("/")[2], tuple(epochs[number] for number in sorted(epochs)))
        for where, epochs in epochs_of.items()
    ]


def left_by_steps(events: Iterable[Mapping[str, Any]]) -> list[Left]:
    """What each step left as it is, in the order of the steps. A step that ran again after a kill tells it once."""
    names: dict[str, str] = {}
    found: dict[str, dict[str, list[Left]]] = {}  # by folder, then by the step's parts in a joint training
    for event in events:
        where = str(event.get("where", ""))
        if event["event"] == "begin":
            names[where] = str(event.get("step", ""))
            found.pop(where, None)
        elif event["event"] == "left alone":
            step = names.get(where) or where.rpartition("/")[2]
            lefts = [Left(step, LeftAlone.from_data(part)) for part in event["parts"]]
            found.setdefault(where, {})[json.dumps(event["parts"])] = lefts
    return [left for by_part in found.values() for lefts in by_part.values() for left in lefts]


def speed_of_steps(events: Iterable[Mapping[str, Any]]) -> list[StepSpeed]:
    """What each step does to the latency, in the order of the steps; the last measurement of each."""
    found = {str(event.get("where", "")): StepSpeed.from_data(event) for event in events if event["event"] == "speed"}
    return list(found.values())


def _finite(value: object) -> float | None:
    """A finite number as a float; None for anything else, since neither JSON nor a chart can show NaN."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None  # type: ignore[arg-type]  # known to be a number
