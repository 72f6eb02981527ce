"""The ranges that activations have over calibration batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mirabelle.calibration.settings import Calibration
from mirabelle.model.watch import LayerRun, watch
from mirabelle.numerics.arrays import to_numpy
from mirabelle.numerics.ranges import Counts, Edges, entropy_threshold, percentile_range
from mirabelle.task.batch import Batch

_BINS = 2048


@dataclass(frozen=True)
class Range:
    """The values [low, high] that an activation is quantized over."""

    low: float
    high: float


def activation_ranges(
    model: nn.Module, names: Iterable[str], batches: list[Batch], method: Calibration, percentile: float
) -> dict[str, Range]:
    """The range of each named module's input, or of its output, over the batches.

    Args:
        model: is run in eval mode, twice where a histogram is needed, and left in the mode in which it was.
        names: of modules that take one tensor, for the range of that tensor; "name:output" for what the module returns,
            "name:relu" for max(0, what it returns).
        batches: real inputs.
        method: "min-max" takes the extremes, "percentile" cuts the tails, "entropy" loses least information.
        percentile: the share of values kept by "percentile", in (0, 100].

    Returns:
        A range for every module that ran; one that never ran is absent.
    """
    modules = {name: model.get_submodule(name.partition(":")[0]) for name in names}
    extremes: dict[str, Range] = {}

    def widen(run: LayerRun) -> None:
        low, high = (float(value) for value in _seen(run).aminmax())
        known = extremes.get(run.name, Range(low, high))
        extremes[run.name] = Range(min(known.low, low), max(known.high, high))

    watch(model, batches, modules, after=widen)
    if method == "min-max":
        return extremes
    counts = {name: np.zeros(_BINS) for name in extremes}

    def count(run: LayerRun) -> None:
        values = _seen(run).abs() if method == "entropy" else _seen(run)
        edges = _edges(extremes[run.name], method)
        counts[run.name] += to_numpy(torch.histc(values.float(), _BINS, float(edges[0]), float(edges[-1])).double())

    watch(model, batches, modules, after=count)
    return {name: _clipped(counts[name], extremes[name], method, percentile) for name in extremes}


def _clipped(counts: Counts, extremes: Range, method: Calibration, percentile: float) -> Range:
    edges = _edges(extremes, method)
    if edges[0] == edges[-1]:
        return extremes
    if method == "percentile":
        return Range(*percentile_range(counts, edges, percentile))
    threshold = entropy_threshold(counts, edges)
    return Range(max(extremes.low, -threshold), min(extremes.high, threshold))


def _edges(extremes: Range, method: Calibration) -> Edges:
    if method == "entropy":
        return np.linspace(0.0, max(abs(extremes.low), abs(extremes.high)), _BINS + 1)
    return np.linspace(extremes.low, extremes.high, _BINS + 1)


def _seen(run: LayerRun) -> Tensor:
    """The tensor that a name asks for."""
    part = run.name.partition(":")[2]
    seen = run.output if part else run.input
    assert seen is not None, "such modules take one tensor and give one"
    return seen.relu() if part == "relu" else seen
