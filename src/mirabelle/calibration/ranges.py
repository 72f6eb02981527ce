"""Ranges of activations over calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mirabelle.calibration.settings import Calibration
from mirabelle.errors import UserError
from mirabelle.model.device import at_work
from mirabelle.model.watch import LayerRun, watch
from mirabelle.numerics.arrays import to_numpy
from mirabelle.numerics.ranges import Counts, Edges, entropy_threshold, least_error_range, percentile_range
from mirabelle.run.process_group import from_all, in_all_processes_if_possible, own_part
from mirabelle.task.batch import Batch

_BINS = 2048


@dataclass(frozen=True)
class Range:
    """The range [low, high] over which an activation is quantized."""

    low: float
    high: float

    def symmetric(self) -> Range:
        """The range in which 256 levels have the zero point 128: x ≈ s · (code − 128), with s = max(|low|, |high|) / 127.

        Example:
            >>> Range(-2.0, 12.7).symmetric()
            Range(low=-12.799999999999999, high=12.7)
        """
        largest = max(abs(self.low), abs(self.high))
        return Range(-largest * 128 / 127, largest)


def activation_ranges(
    model: nn.Module, names: Iterable[str], batches: list[Batch], method: Calibration, percentile: float
) -> dict[str, Range]:
    """The range of the input or output of modules over calibration data.

    Several processes of a job share the batches.

    Args:
        model: runs in evaluation mode, twice if a histogram is needed; its mode is restored.
        names: of modules that take one tensor, for the range of this tensor; "name:output" for the module's output,
            "name:relu" for max(0, output), "name:relu6" for min(6, max(0, output)).
        batches: calibration data.
        method: "min-max" uses the extreme values, "percentile" clips the tails, "entropy" chooses the threshold with the least
            loss of information (KL divergence), "mse" the range with the least squared error.
        percentile: the percentage of values inside the range for "percentile", in (0, 100].

    Returns:
        The range of every module that ran, by the given names.

    Raises:
        UserError: E131 without calibration data; E121 if a value is not finite.
    """
    if not batches:
        raise UserError("E131", "there are no data to calibrate on", "give training data with at least one sample")
    chosen = list(names)
    extremes = in_all_processes_if_possible(_extremes, model, chosen, batches)
    if method == "min-max":
        return extremes
    counts = in_all_processes_if_possible(_counts, model, extremes, batches, method)
    return {name: _clipped(counts[name], extremes[name], method, percentile) for name in extremes}


def _extremes(model: nn.Module, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, Range]:
    """The least and the largest value of each module that ran; of several processes each runs a part of the batches."""
    found: dict[str, Range] = {}
    own = own_part(batches)
    for part in from_all(lambda: _extremes_here(model, names, own)):
        for name, new in part.items():
            known = found.get(name, new)
            found[name] = Range(min(known.low, new.low), max(known.high, new.high))
    return found


def _extremes_here(model: nn.Module, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, Range]:
    extremes: dict[str, Range] = {}

    def widen(run: LayerRun) -> None:
        low, high = (float(value) for value in _seen(run).aminmax())
        if not np.isfinite([low, high]).all():
            name, _, part = run.name.partition(":")
            message = f'the {"output" if part else "input"} of "{name}" is not finite on the calibration data'
            raise UserError("E121", message, "mend the weights that lead to it, or the data")
        known = extremes.get(run.name, Range(low, high))
        extremes[run.name] = Range(min(known.low, low), max(known.high, high))

    with at_work(model):
        watch(model, batches, _modules(model, names), after=widen)
    return extremes


def _counts(
    model: nn.Module, extremes: Mapping[str, Range], batches: Sequence[Batch], method: Calibration
) -> dict[str, Counts]:
    """The histogram of the values of each module; of several processes each runs a part of the batches."""
    own = own_part(batches)
    parts = from_all(lambda: _counts_here(model, extremes, own, method))
    return {name: sum((part[name] for part in parts[1:]), parts[0][name]) for name in extremes} if parts else {}


def _counts_here(
    model: nn.Module, extremes: Mapping[str, Range], batches: Sequence[Batch], method: Calibration
) -> dict[str, Counts]:
    counts = {name: np.zeros(_BINS) for name in extremes}

    def count(run: LayerRun) -> None:
        values = _seen(run).abs() if method == "entropy" else _seen(run)
        edges = _edges(extremes[run.name], method)
        counts[run.name] += to_numpy(torch.histc(values.float(), _BINS, float(edges[0]), float(edges[-1])).double())

    with at_work(model):
        watch(model, batches, _modules(model, extremes), after=count)
    return counts


def _modules(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    return {name: model.get_submodule(name.partition(":")[0]) for name in names}


def _clipped(counts: Counts, extremes: Range, method: Calibration, percentile: float) -> Range:
    edges = _edges(extremes, method)
    if edges[0] == edges[-1]:
        return extremes
    if method == "percentile":
        return Range(*percentile_range(counts, edges, percentile))
    if method == "mse":
        return Range(*least_error_range(counts, edges))
    threshold = entropy_threshold(counts, edges)
    return Range(max(extremes.low, -threshold), min(extremes.high, threshold))


def _edges(extremes: Range, method: Calibration) -> Edges:
    if method == "entropy":
        return np.linspace(0.0, max(abs(extremes.low), abs(extremes.high)), _BINS + 1)
    return np.linspace(extremes.low, extremes.high, _BINS + 1)


def _seen(run: LayerRun) -> Tensor:
    """The tensor that the name of the run refers to: input, output, or rectified output."""
    part = run.name.partition(":")[2]
    seen = run.output if part else run.input
    assert seen is not None, "the module must take one tensor and return one"
    return seen.relu() if part == "relu" else seen.clamp(0, 6) if part == "relu6" else seen
