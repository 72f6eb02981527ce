"""The numbers that trackers log, taken from the events of a run, and their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

Event = Mapping[str, Any]


@dataclass(frozen=True)
class TrackedRow:
    """The numbers of one event.

    Args:
        index: number of earlier rows of the run; the same in every process that works on the run.
        time: seconds since 1970.
        group: prefix of the names of all its numbers; rows of a group share a horizontal axis.
        position: on that axis: the optimizer step, the step of the recipe, or 0 for events that happen once.
        scalars: full name -> value.
    """

    index: int
    time: float
    group: str
    position: int
    scalars: Mapping[str, float]

    def to_data(self) -> dict[str, Any]:
        return asdict(self)


class Rows:
    """Converts the events of a run into numbered rows, without duplicates.

    A run that was killed and resumed repeats the events since its last checkpoint, with the same numbers. Such repetitions are
    left out, so that every point of a curve appears once.

    Example:
        >>> event = {"event": "epoch", "where": "steps/1-prune.weights", "epoch": 1, "step": 40, "loss": 0.5, "metric": 0.9}
        >>> rows = Rows()
        >>> row = rows.row(event)
        >>> row.group, row.position, row.scalars
        ('1-prune.weights', 40, {'1-prune.weights/train/loss': 0.5, '1-prune.weights/validation/metric': 0.9})
        >>> rows.row(event) is None
        True
    """

    def __init__(self) -> None:
        self._seen: set[tuple[str, int, tuple[str, ...]]] = set()

    def row(self, event: Event) -> TrackedRow | None:
        """The row of an event; None if the event has no numbers to log or repeats an earlier one."""
        extract = _EXTRACTORS.get(event["event"])
        if extract is None:
            return None
        group, position, values = extract(event)
        scalars = {f"{group}/{name}": float(value) for name, value in values.items() if isinstance(value, (int, float))}
        key = (group, position, tuple(sorted(scalars)))
        if not scalars or key in self._seen:
            return None
        self._seen.add(key)
        return TrackedRow(len(self._seen) - 1, float(event.get("time", 0.0)), group, position, scalars)


_Numbers = tuple[str, int, dict[str, Any]]


def _epoch(event: Event) -> _Numbers:
    values = {
        "train/loss": event.get("loss"),
        f"validation/{event.get('metric_name', 'metric')}": event.get("metric"),
        "lr": event.get("lr"),
    }
    return _place(event), int(event.get("step", event["epoch"])), values


def _profile(event: Event) -> _Numbers:
    profile = event["profile"]
    metric, latency = profile.get("metric"), profile.get("latency_ms")
    values = {name: profile.get(name) for name in ("parameters", "nonzero_parameters", "macs")}
    values |= {f"size_bytes/{form}": size for form, size in profile.get("size_bytes", {}).items()}
    values |= {metric["name"]: metric["value"]} if metric else {}
    values |= {"latency_ms": latency["median"]} if latency else {}
    # "2-quantize.static" is the second step of the recipe, "0-baseline" the model before the first. A teacher is no step of it.
    place = _place(event)
    number = place.partition("-")[0]
    group = "teacher" if event.get("step") == "teacher" else "trail"
    return group, int(number) if number.isdecimal() else 0, values


def _gate(event: Event) -> _Numbers:
    return "gates", 0, {event["name"]: event.get("passed")}


def _end(event: Event) -> _Numbers:
    return "goal", 0, {"met": event.get("met")}


def _place(event: Event) -> str:
    return str(event.get("where", "")).removeprefix("steps/") or "training"


_EXTRACTORS: dict[str, Callable[[Event], _Numbers]] = {"epoch": _epoch, "profile": _profile, "gate": _gate, "end": _end}
