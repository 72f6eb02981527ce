"""Latency measurements in blocks, whose intervals cover what a repetition of the whole measurement gives.

Calls of one loaded model agree better with each other than with those of the same model loaded again, or a second later: memory
is laid out anew, and other work on the machine comes and goes. So a measurement consists of blocks. In each block all models
are loaded anew and called in alternation, in another order each time. Latencies, ratios and intervals all come from the medians
of the blocks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mirabelle.numerics.statistics import interval_of_repeats
from mirabelle.task.profile import Latency

_BLOCKS, FEWEST_BLOCKS, FEWEST_TO_ANSWER = 12, 6, 3
_WARM_UP, _FEWEST_ROUNDS = 2, 3  # calls of each model in a block
_LONGER = 2.0  # a measurement of slow models may take this many times the seconds asked for, until it has the fewest blocks
_FLOOR = 0.025  # relative: what ratios minutes apart differ by even where the blocks of each agree
_JITTER_MS = 0.0004  # the same for calls of microseconds, which depend on what else uses the caches of the core
_NOTICEABLE = 0.02  # a ratio that differs less from 1 counts as no difference

Call = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """The latency of the second model over that of the first, with its 95 % interval.

    The ratio is exactly that of the two latencies measured with it. In the interval lie 95 % of the ratios that repetitions of
    the measurement give in other processes, some minutes apart, on the same machine (see
    `numerics.statistics.interval_of_repeats`, and `benchmarks/interval_coverage.py` for the proof).

    Args:
        median: the ratio: the geometric mean over the blocks of the ratio of the two medians.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    median: float
    low: float
    high: float

    def to_data(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def unchanged(self) -> bool:
        """Whether the interval contains 1, or the median differs by less than 2 % from it."""
        return self.low <= 1 <= self.high or abs(self.median - 1) < _NOTICEABLE

    @property
    def slower(self) -> bool:
        """Whether the second model is slower: the interval lies above 1, and the ratio differs by 2 % or more from it."""
        return self.low > 1 and not self.unchanged

    @property
    def faster(self) -> bool:
        """Whether the second model is faster: the interval lies below 1, and the ratio differs by 2 % or more from it."""
        return self.high < 1 and not self.unchanged

    def inverse(self) -> Ratio:
        """The latency of the first model over that of the second."""
        return Ratio(1 / self.median, 1 / self.high, 1 / self.low)

    def in_words(self) -> str:
        """The speed of the second model relative to the first, in words.

        Example:
            >>> Ratio(0.5, 0.4, 0.625).in_words()
            '2.00× faster (1.60 to 2.50)'
            >>> Ratio(1.01, 0.97, 1.05).in_words()
            'no difference shown (ratio 1.01, 0.97 to 1.05)'
        """
        if self.unchanged:
            return f"no difference shown (ratio {self.median:.2f}, {self.low:.2f} to {self.high:.2f})"
        if self.median < 1:
            return f"{1 / self.median:.2f}× faster ({1 / self.high:.2f} to {1 / self.low:.2f})"
        return f"{self.median:.2f}× slower ({self.low:.2f} to {self.high:.2f})"


def interleaved(
    load: Callable[[], Mapping[str, Call]],
    *,
    runtime: str,
    threads: int,
    batch: int,
    seconds: float = 2.0,
    enough: Callable[[Mapping[str, Ratio]], bool] | None = None,
    fewest: int = FEWEST_BLOCKS,
) -> tuple[dict[str, Latency], dict[str, Ratio]]:
    """Measure the latency of several functions, called in alternation (A B B A …) in blocks, for about `seconds`.

    Args:
        load: loads all models anew and returns the functions that call them, by name; called for each block.
        runtime: name of the runtime.
        threads: number of threads.
        batch: number of samples in a call.
        seconds: duration of the measurement, with loading. Slow models may take longer.
        enough: whether the ratios so far answer the question; asked after a few blocks, it ends the measurement.
        fewest: blocks after which the measurement of slow models ends, with wide intervals if they are few.

    Returns:
        The latency of each function by name, and the ratio of its latency to that of the first function.
    """
    blocks: list[dict[str, list[float]]] = []
    begin = time.perf_counter()
    while len(blocks) < _BLOCKS:
        spent = time.perf_counter() - begin
        if len(blocks) >= fewest and spent > _LONGER * seconds:
            break
        blocks.append(_block(load(), seconds / _BLOCKS, backwards=len(blocks) % 2 == 1))
        if enough is not None and len(blocks) >= FEWEST_TO_ANSWER:
            found = of_blocks(blocks, runtime=runtime, threads=threads, batch=batch)
            if enough(found[1]):
                return found
    return of_blocks(blocks, runtime=runtime, threads=threads, batch=batch)


def of_blocks(
    blocks: list[dict[str, list[float]]], *, runtime: str, threads: int, batch: int
) -> tuple[dict[str, Latency], dict[str, Ratio]]:
    """Latencies and ratios from the milliseconds of all calls: one dict by name for each block."""
    names = list(blocks[0])
    medians = {name: np.log([np.median(block[name]) for block in blocks]) for name in names}
    slowest = {name: np.log([np.percentile(block[name], 95) for block in blocks]) for name in names}
    shortest = min(float(np.exp(values.min())) for values in medians.values())
    floor = math.hypot(_FLOOR, _JITTER_MS / shortest)
    latencies, ratios = {}, {}
    for name in names:
        middle, p95 = (float(np.exp(values[name].mean())) for values in (medians, slowest))
        latencies[name] = Latency(middle, p95, runtime, threads, batch)
        ratio, low, high = np.exp(interval_of_repeats(medians[name] - medians[names[0]], floor=floor)).tolist()
        ratios[name] = Ratio(ratio, low, high) if name != names[0] else Ratio(1.0, 1.0, 1.0)
    return latencies, ratios


def _block(calls: Mapping[str, Call], seconds: float, *, backwards: bool) -> dict[str, list[float]]:
    """Milliseconds of calls in alternation, each round in the opposite order of the one before."""
    order = list(calls.items())[:: -1 if backwards else 1]
    begin = time.perf_counter()
    for _ in range(_WARM_UP):
        for _, call in order:
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    rounds = 0
    while rounds < _FEWEST_ROUNDS or time.perf_counter() - begin < seconds:
        for name, call in order:
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e3)
        order.reverse()
        rounds += 1
    return times
