"""What automatic compression has tried and found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mirabelle.inspection.measure import count_parameters
from mirabelle.job.result import Result
from mirabelle.planning.measured import Measured
from mirabelle.planning.plan import Plan
from mirabelle.run import files
from mirabelle.task.profile import MeasuredMetric


@dataclass(frozen=True)
class Attempt:
    """One recipe that was run.

    Args:
        name: of its folder.
        plan: its structure, its form, what stays, and what was expected.
        steps: of the recipe, as plain data.
        trained: whether it has a training.
        metric: on the validation data, of the compressed model.
        costs: of the compressed model, measured, for each limit.
        expected: the same costs as the plan expected them.
        fits: whether all limits hold, those of the metric by the validation data.
        missed: names of the limits but that of the metric that do not hold.
        seconds: that it took.
    """

    name: str
    plan: str
    steps: Sequence[Mapping[str, Any]]
    trained: bool
    metric: float
    costs: Mapping[str, float]
    expected: Mapping[str, float]
    fits: bool
    missed: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Found:
    """What automatic compression has found.

    Args:
        plan: the first plan.
        attempts: in their order.
        best: the run of the best of them; None if nothing was run.
        folder: with `best.json` and the files of the best run.
        start_metric: of the given model on the validation data.
    """

    plan: Plan
    attempts: Sequence[Attempt]
    best: Result | None
    folder: Path
    start_metric: MeasuredMetric

    @property
    def met(self) -> bool:
        """Whether the best result meets the goal."""
        return self.best is not None and self.best.met


def costs_of_result(result: Result, found: Measured) -> dict[str, float]:
    """What a compressed model costs; its milliseconds are those of the given model at first, times the ratio of both now."""
    start, end = result.start, result.profile
    assert end.size_bytes.packed is not None, "a run packs its model"
    assert end.size_bytes.onnx is not None, "a run exports its model"
    assert start.latency_ms is not None, "a run times both models"
    assert end.latency_ms is not None, "a run times both models"
    return {
        "size": float(end.size_bytes.packed), "onnx_size": float(end.size_bytes.onnx), "macs": float(end.macs),
        "latency": found.forms["float"].latency * end.latency_ms.median / start.latency_ms.median,
        "parameters": float(end.nonzero_parameters),
    }  # fmt: skip


def place_of_goal(out: Path, goal: str) -> Path:
    """The folder of the attempts for a goal: that of the search for the first goal, and one of its own for each other.

    Args:
        out: folder of the search, whose measurements serve all goals.
        goal: digest of all that attempts depend on.
    """
    kept = out / "goals.json"
    known: list[str] = files.read_json(kept)["goals"] if kept.is_file() else []
    if goal not in known:
        known.append(goal)
        files.write_json(kept, {"goals": known})
    number = known.index(goal)
    return out if number == 0 else out / f"goal-{number + 1}"


def whole_cost(name: str, found: Measured, model: nn.Module) -> float:
    """What a share in a goal refers to: the cost of the given model.

    Args:
        name: of the cost.
        found: measurements of the model.
        model: the given one.
    """
    given = found.forms["float"]
    return {
        "size": found.float_bytes, "onnx_size": given.onnx_size, "latency": given.latency, "macs": found.macs,
        "parameters": float(count_parameters(model)[1]),
    }[name]  # fmt: skip
