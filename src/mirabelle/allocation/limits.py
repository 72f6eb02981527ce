"""Costs with limits, for planning: multiply-accumulates, parameters, bytes, and measured milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from mirabelle.allocation.knapsack import Table, tables_of
from mirabelle.allocation.plan import Measured
from mirabelle.graph.costs import Polynomial
from mirabelle.runtime.export import export
from mirabelle.runtime.latency import Ratio
from mirabelle.runtime.runtime import Session, default_runtime, time_alone, time_side_by_side

if TYPE_CHECKING:
    from mirabelle.task.task import Task

_SECONDS = 1.0  # duration of one alternating measurement of two models
_TRIES, _NARROW = 5, 0.1  # most measurements; the confidence interval of the ratio, relative to it, that is narrow enough
BYTES = 4  # size of a float32 parameter


@dataclass(frozen=True)
class CountedLimit:
    """A limited cost that can be counted: expected as a polynomial in the fractions that the items keep.

    Args:
        name: of the cost, for messages.
        limit: the most that the cost may be.
        polynomial: coefficients by the indices of items; an index occurs as often as the item is a factor.
        cost: numbers of units that the items keep -> the true cost.
    """

    name: str
    limit: float
    polynomial: Polynomial
    cost: Measured

    def tables(self, fractions: Sequence[Table]) -> Mapping[tuple[int, ...], Table]:
        return tables_of(self.polynomial, fractions)

    @staticmethod
    def exact(name: str, limit: float, polynomial: Polynomial) -> CountedLimit:
        """A limit for items that are either kept or removed as a whole, for which the polynomial is the true cost."""

        def cost(counts: Sequence[int]) -> float:
            return sum(value for key, value in polynomial.items() if all(counts[item] for item in key))

        return CountedLimit(name, limit, polynomial, cost)


@dataclass
class MeasuredLimit:
    """A limit in milliseconds: plans use expected times, and are then checked by measuring the whole model in the runtime.

    Args:
        name: "latency".
        limit: the most milliseconds.
        expected: for each item the fractions that its options keep -> tables of expected milliseconds.
        measure: numbers of units that the items keep -> measured milliseconds of the whole model.
        known: earlier measurements, by the numbers of units.
    """

    name: str
    limit: float
    expected: Callable[[Sequence[Table]], Mapping[tuple[int, ...], Table]]
    measure: Measured
    known: dict[tuple[int, ...], float] = field(default_factory=dict)

    def tables(self, fractions: Sequence[Table]) -> Mapping[tuple[int, ...], Table]:
        return self.expected(fractions)

    def cost(self, counts: Sequence[int]) -> float:
        key = tuple(counts)
        if key not in self.known:
            self.known[key] = self.measure(counts)
        return self.known[key]


class Stopwatch:
    """Measures the latency of models in ONNX Runtime relative to a reference model, in alternating runs.

    Args:
        model: the reference model.
        task: gives the inputs.
        batch: number of samples in one call.
        seconds: duration of one measurement.
        tries: most measurements of a model.

    Attributes:
        start_ms: median latency of the reference model, in milliseconds.
    """

    def __init__(self, model: nn.Module, task: Task, batch: int, *, seconds: float = _SECONDS, tries: int = _TRIES) -> None:
        self._task, self._batch, self._seconds, self._tries = task, batch, seconds, tries
        self._inputs = task.example(max(batch, 2)).inputs
        self._start = self._session(model)
        self.start_ms = time_alone(self._start, self._inputs, batch=batch, seconds=seconds).median

    def __call__(self, model: nn.Module) -> float:
        """Milliseconds of one call: `start_ms` times the upper end of the confidence interval of the model's latency ratio."""
        return self.start_ms * self.ratio(model).high

    def ratio(self, model: nn.Module) -> Ratio:
        """The latency of a model divided by that of the reference model, with a confidence interval.

        While the interval is wide, for example because of other work on the machine, the measurement is repeated; the result
        with the narrowest interval is returned.
        """
        session, ratios = self._session(model), []
        for _ in range(self._tries):
            ratios.append(time_side_by_side(self._start, session, self._inputs, batch=self._batch, seconds=self._seconds)[2])
            if _width(ratios[-1]) <= _NARROW:
                break
        return min(ratios, key=_width)

    def _session(self, model: nn.Module) -> Session:
        return default_runtime().load(export(model, self._task.example()), torch.get_num_threads())


def _width(ratio: Ratio) -> float:
    """The width of the confidence interval relative to the ratio."""
    return (ratio.high - ratio.low) / ratio.median
