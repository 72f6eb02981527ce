"""Latency measurements in alternating runs, so that noise on the machine affects all models alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mirabelle.task.profile import Latency

_WARM_UP = 5
_NOTICEABLE = 0.02  # a ratio that differs less from 1 counts as no difference


@dataclass(frozen=True)
class Ratio:
    """Median of the ratios of paired times, second model over first, with its 95 % confidence interval.

    The interval consists of order statistics, the ratios at the ranks n/2 ± 0.98 · √n, and holds for every distribution.

    Args:
        median: median of the ratios.
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
    calls: Mapping[str, Callable[[], object]], *, runtime: str, threads: int, batch: int, seconds: float = 2.0
) -> tuple[dict[str, Latency], dict[str, Ratio]]:
    """Measure the latency of several functions, called in alternation (A B A B …) for about `seconds`.

    Args:
        calls: the functions, by name.
        runtime: name of the runtime.
        threads: number of threads.
        batch: number of samples in a call.
        seconds: duration of the measurement.

    Returns:
        The latency of each function by name, and the ratio of its times to those of the first function.
    """
    for _ in range(_WARM_UP):
        for call in calls.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times[next(iter(times))]) < _WARM_UP:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e3)
    latencies = {
        name: Latency(float(np.median(taken)), float(np.percentile(taken, 95)), runtime, threads, batch)
        for name, taken in times.items()
    }
    first = np.array(times[next(iter(times))])
    ratios = {name: _ratio(np.array(taken) / first) for name, taken in times.items()}
    return latencies, ratios


def _ratio(pairs: np.ndarray[Any, np.dtype[np.float64]]) -> Ratio:
    ordered, reach = np.sort(pairs), 0.98 * np.sqrt(len(pairs))
    low, high = int(len(pairs) / 2 - reach), int(np.ceil(len(pairs) / 2 + reach))
    return Ratio(float(np.median(pairs)), float(ordered[max(low, 0)]), float(ordered[min(high, len(pairs) - 1)]))
