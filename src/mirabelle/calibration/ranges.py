"""Batches in, ranges of activations out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mirabelle.numerics.ranges import Counts, Edges, entropy_threshold, percentile_range
from mirabelle.task.batch import Batch, call

Calibration = Literal["min-max", "percentile", "entropy"]
_BINS = 2048


@dataclass(frozen=True)
class Range:
    """The values [low, high] that an activation is quantized over."""

    low: float
    high: float


def activation_ranges(
    model: nn.Module, names: Iterable[str], batches: list[Batch], method: Calibration, percentile: float
) -> dict[str, Range]:
    """The range of what goes into each named module, or comes out of it, over the batches.

    Args:
        model: run in eval mode, twice where a histogram is needed.
        names: of modules that take one tensor; "name:output" for what a module gives, "name:relu" for what a ReLU makes of it.
        batches: real inputs.
        method: "min-max" takes the extremes, "percentile" cuts the tails, "entropy" loses least information.
        percentile: the share of values kept by "percentile", in (0, 100].

    Returns:
        A range for every module that ran; one that never ran is absent.
    """
    names = list(names)
    extremes: dict[str, Range] = {}

    def widen(name: str, tensor: Tensor) -> None:
        low, high = (float(value) for value in tensor.aminmax())
        known = extremes.get(name, Range(low, high))
        extremes[name] = Range(min(known.low, low), max(known.high, high))

    _watch(model, names, batches, widen)
    if method == "min-max":
        return extremes
    counts = {name: np.zeros(_BINS) for name in extremes}

    def count(name: str, tensor: Tensor) -> None:
        values = tensor.abs() if method == "entropy" else tensor
        edges = _edges(extremes[name], method)
        counts[name] += torch.histc(values.float(), _BINS, float(edges[0]), float(edges[-1])).double().numpy()

    _watch(model, names, batches, count)
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


def _watch(model: nn.Module, names: list[str], batches: list[Batch], see: Callable[[str, Tensor], None]) -> None:
    """Run the batches and show `see` what goes into each named module, or comes out of it."""

    def hook_for(name: str, part: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def look(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen = inputs[0] if not part else output.relu() if part == "relu" else output
            see(name, seen.detach())

        return look

    hooks = []
    for name in names:
        module, _, part = name.partition(":")
        hooks.append(model.get_submodule(module).register_forward_hook(hook_for(name, part)))
    try:
        with torch.no_grad():
            for batch in batches:
                call(model.eval(), batch.inputs)
    finally:
        for hook in hooks:
            hook.remove()
