"""The costs that a plan is held against: multiply-accumulates, parameters, bytes, and measured milliseconds."""

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
from mirabelle.runtime.onnxruntime import Session, time_side_by_side

if TYPE_CHECKING:
    from mirabelle.task.task import Task

_SECONDS = 1.0  # in which two models are timed in turn
_TRIES, _NARROW = 5, 0.1  # timed again while the interval of their ratio is wider than this share of it
BYTES = 4  # of a parameter in float32


@dataclass(frozen=True)
class CountedLimit:
    """A cost that is a polynomial in what the items keep.

    Args:
        name: of the cost.
        limit: the most it may be.
        polynomial: by the numbers of items.
        cost: the true one.
    """

    name: str
    limit: float
    polynomial: Polynomial
    cost: Measured

    def tables(self, fractions: Sequence[Table]) -> Mapping[tuple[int, ...], Table]:
        return tables_of(self.polynomial, fractions)

    @staticmethod
    def exact(name: str, limit: float, polynomial: Polynomial) -> CountedLimit:
        """Where items are kept whole or not at all, and the polynomial is the true cost."""

        def cost(counts: Sequence[int]) -> float:
            return sum(value for key, value in polynomial.items() if all(counts[item] for item in key))

        return CountedLimit(name, limit, polynomial, cost)


@dataclass
class MeasuredLimit:
    """Milliseconds in the runtime: planned by expected times, held against the whole model's.

    Args:
        name: "latency".
        limit: the most it may be.
        expected: the tables of expected times, by what the options of each item keep.
        measure: milliseconds of the whole model when each item keeps so many.
        known: what was measured before.
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
    """Times models against the one at hand in ONNX Runtime, in turn.

    Args:
        model: the one at hand.
        task: gives inputs.
        batch: samples of a call.

    Attributes:
        start_ms: of the model at hand.
    """

    def __init__(self, model: nn.Module, task: Task, batch: int) -> None:
        self._task, self._batch = task, batch
        self._inputs = task.example(max(batch, 2)).inputs
        self._start = self._session(model)
        self.start_ms = time_side_by_side(self._start, self._start, self._inputs, batch=batch, seconds=_SECONDS)[0].median

    def __call__(self, model: nn.Module) -> float:
        """Milliseconds of a call: the ratio to the model at hand, at the upper end of its interval, times `start_ms`."""
        return self.start_ms * self.ratio(model).high

    def ratio(self, model: nn.Module) -> Ratio:
        """A model's latency as a share of that of the model at hand.

        Where other work takes part and the interval is wide, it is timed several times; the narrowest counts.
        """
        session, ratios = self._session(model), []
        for _ in range(_TRIES):
            ratios.append(time_side_by_side(self._start, session, self._inputs, batch=self._batch, seconds=_SECONDS)[2])
            if _width(ratios[-1]) <= _NARROW:
                break
        return min(ratios, key=_width)

    def _session(self, model: nn.Module) -> Session:
        return Session(export(model, self._task.example()), torch.get_num_threads())


def _width(ratio: Ratio) -> float:
    """Of its interval, as a share of it."""
    return (ratio.high - ratio.low) / ratio.median
