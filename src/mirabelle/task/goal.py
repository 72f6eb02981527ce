"""The goal of a run: limits on metric, size, latency and operations, absolute or relative to the original model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from mirabelle.errors import UserError, gathered, raise_all
from mirabelle.records.record import Count, record
from mirabelle.task.profile import Profile

_UNITS = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "ms": 1.0, "s": 1e3, "k": 1e3, "M": 1e6, "G": 1e9, "": 1.0}
_ALLOWED = {
    "size": ("B", "kB", "MB", "GB"),
    "onnx_size": ("B", "kB", "MB", "GB"),
    "latency": ("ms", "s"),
    "macs": ("", "k", "M", "G"),
    "parameters": ("", "k", "M", "G"),
}

ANY = "any"  # as a limit of the latency: the model may become slower
FASTEST = "fastest"  # as a runtime: the one in which the compressed model is fastest
RuntimeName = Literal[
    "onnxruntime", "onnxruntime_extended", "onnxruntime_cuda", "openvino", "openvino_bf16", "fastest"
]  # the keys of mirabelle.runtime.RUNTIMES, and FASTEST

ROUNDING = 1e-9  # a metric over n samples is a multiple of 1/n; rounding errors of a subtraction must not matter


@dataclass(frozen=True)
class Shortfall:
    """A part of a goal that was not reached.

    Args:
        name: "metric", "size", "onnx_size", "latency", "macs" or "parameters".
        limit: the limit of the goal: a fraction, bytes, milliseconds or a count.
        value: the value that was reached, in the unit of the limit.
        constant: whether the limit is the metric of an answer that is the same for every input, which must be exceeded.
    """

    name: str
    limit: float
    value: float
    constant: bool = False

    @property
    def missed_by(self) -> float:
        return abs(self.value - self.limit)

    def to_data(self) -> dict[str, Any]:
        return {"name": self.name, "limit": self.limit, "value": self.value, "missed_by": self.missed_by}

    def __str__(self) -> str:
        side = "at least" if self.name == "metric" else "at most"
        if self.constant:
            shown = [f"{one:.2%}" if 0 <= one <= 1 else f"{one:.6g}" for one in (self.value, self.limit)]
            return f"metric is {shown[0]}, asked more than the {shown[1]} of the same answer for every input"
        if self.name == "metric" and min(self.limit, self.value) >= 0 and max(self.limit, self.value) <= 1:
            missed = f"missed by {100 * self.missed_by:.2f} points"
            return f"metric is {self.value:.2%}, asked {side} {self.limit:.2%}: {missed}"
        return f"{self.name} is {self.value:.6g}, asked {side} {self.limit:.6g}: missed by {self.missed_by:.4g}"


@record
class Goal:
    """The requirements on the compressed model at the end of a run. They are checked once, on the test set.

    Args:
        max_drop: largest drop of the metric: "0.5pt" (percentage points) or "1%" (of the original model's metric). The
            compressed model must also be better than the best answer that is the same for every input.
        metric: least value of the metric, absolute: "99.2%" or 0.992.
        size: most bytes of the packed file: "44 kB" (1 kB = 1000 bytes), or "5%" of the original model's float32 torch file.
        onnx_size: most bytes of the ONNX file: absolute, or relative to the original model's ONNX file.
        latency: largest median latency of one call: "0.8 ms", or "25%" of the original model's. Without a limit the model must
            not become slower: what makes it slower is undone (`mirabelle.job.never_slower`). "any" allows that, for a goal of
            bytes alone.
        macs: most multiply-accumulate operations for one sample: "2.3M", or "50%" of the original model's.
        parameters: most non-zero parameters: "20k", or "8%" of the original model's.
        batch: number of samples in the call that is timed; by default 1.
        threads: number of threads of this call; by default those of the run.
        runtime: the runtime for which the model is made: latency and the final metric are measured in it. By default ONNX
            Runtime; "openvino" computes in float32, "openvino_bf16" in bfloat16 (`pip install 'mirabelle[openvino]'`). With
            "fastest", steps are judged in ONNX Runtime, and the result in the installed runtime in which it is fastest, of
            those that compute as the file says (all but "openvino_bf16").

    Raises:
        UserError: E113 if a limit cannot be read.

    Example:
        >>> Goal(max_drop="0.2pt", size="44 kB").may_be_slower, Goal(size="44 kB", latency="any").may_be_slower
        (False, True)
    """

    max_drop: str | None = None
    metric: str | float | None = None
    size: str | float | None = None
    onnx_size: str | float | None = None
    latency: str | float | None = None
    macs: str | float | None = None
    parameters: str | float | None = None
    batch: Count | None = None
    threads: Count | None = None
    runtime: RuntimeName | None = None

    @property
    def names_a_runtime(self) -> bool:
        """Whether one runtime is asked for by its name."""
        return self.runtime not in (None, FASTEST)

    def __post_init__(self) -> None:
        readers: dict[str, Callable[[Any], object]] = {"max_drop": _drop, "metric": _fraction}
        readers |= {name: partial(limit_of, name, start=1.0) for name in _ALLOWED}
        mistakes: list[UserError] = []
        for name, read in readers.items():
            with gathered(mistakes, name):
                if self._limit(name) is not None:
                    read(self._limit(name))
        raise_all(mistakes)

    def check(self, metric: str, highest: float) -> None:
        """Check that a metric can reach the goal.

        Args:
            metric: its name.
            highest: its highest value.

        Raises:
            UserError: E113 if the goal on the metric is above this value.
        """
        if self.metric is not None and _fraction(self.metric) > highest:
            remedy = f"{metric} is at most {highest:g}; write, for example, " + ('"93%" or 0.93' if highest else "-0.5")
            raise UserError("E113", f"goal.metric cannot be reached; got {self.metric!r}", remedy, path=("metric",))

    def shortfalls(self, start: Profile, end: Profile, constant: float | None = None) -> list[Shortfall]:
        """The parts of this goal that the model at the end does not reach; empty if it reaches the goal.

        Args:
            start: profile of the original model.
            end: profile of the compressed model.
            constant: the metric of the best answer that is the same for every input, if the compressed model has learned no
                more than that; a limit relative to the start then also asks for a metric above it.
        """
        missed = [*self._metric_shortfalls(start, end, constant)]
        for name in _ALLOWED:
            asked = self._limit(name)
            if asked is None:
                continue
            before, after = _measured(name, start, of_start=True), _measured(name, end, of_start=False)
            limit = limit_of(name, asked, before)
            if not after <= limit:  # written so that NaN never counts as success
                missed.append(Shortfall(name, limit, after))
        return missed

    def limit_of_metric(self, start: Profile) -> float | None:
        """The least value of the metric that reaches this goal; None if the goal asks for none."""
        if self.metric is None and self.max_drop is None:
            return None
        assert start.metric is not None, "a goal on the metric needs it measured"
        return self.least_metric(start.metric.value)

    def least_metric(self, start: float, share: float = 1.0) -> float | None:
        """The least value of the metric that reaches this goal; None if the goal asks for none.

        Args:
            start: the metric of the original model.
            share: of the allowed drop that may be used.
        """
        limits = []
        if self.metric is not None:
            limits.append(_fraction(self.metric))
        if self.max_drop is not None:
            amount, relative = _drop(self.max_drop)
            limits.append(start - share * amount * (abs(start) if relative else 1.0))
        return max(limits, default=None)

    def limit_of_latency(self, start: Profile) -> float | None:
        """The largest latency in milliseconds that reaches this goal; None if the goal asks for none."""
        asked = self._limit("latency")
        return None if asked is None else limit_of("latency", asked, _measured("latency", start, of_start=True))

    @property
    def may_be_slower(self) -> bool:
        """Whether the model may be slower at the end than at the start."""
        return self.latency == ANY

    def _limit(self, name: str) -> str | float | None:
        """A limit as it was given; None if there is none."""
        given: str | float | None = getattr(self, name)
        return None if name == "latency" and given == ANY else given

    def _metric_shortfalls(self, start: Profile, end: Profile, constant: float | None) -> list[Shortfall]:
        limit = self.limit_of_metric(start)
        if limit is None:
            return []
        assert end.metric is not None, "a goal on the metric needs it measured"
        if not end.metric.value >= limit - ROUNDING:
            return [Shortfall("metric", limit, end.metric.value)]
        if self.max_drop is not None and constant is not None and end.metric.value <= constant + ROUNDING:
            return [Shortfall("metric", constant, end.metric.value, constant=True)]
        return []


def _measured(name: str, profile: Profile, *, of_start: bool) -> float:
    """The measured number to compare with the limit `name`; the original model's size is that of its plain torch file."""
    sizes = profile.size_bytes
    value = {
        "size": sizes.torch if of_start else sizes.packed,
        "onnx_size": sizes.onnx,
        "latency": profile.latency_ms.median if profile.latency_ms else None,
        "macs": profile.macs,
        "parameters": profile.nonzero_parameters,
    }[name]
    assert value is not None, f"a goal on {name} needs it measured"
    return float(value)


def limit_of(name: str, asked: str | float, start: float, where: str = "goal.") -> float:
    """A limit as a number: bytes, milliseconds, or a count.

    Args:
        name: "size", "onnx_size", "latency", "macs" or "parameters".
        asked: a number, a string with a unit such as "44 kB", or "5%" of `start`.
        start: the value of the original model.
        where: prefix of the name in messages.

    Raises:
        UserError: E113 if the limit cannot be read, or is not above 0.

    Example:
        >>> limit_of("macs", "2.5M", 1e7), limit_of("macs", "50%", 1e7)
        (2500000.0, 5000000.0)
    """
    if isinstance(asked, (int, float)):
        limit = _finite(where + name, asked)
    else:
        number, unit = _parse(where + name, asked, ("%", *_ALLOWED[name]))
        limit = start * number / 100 if unit == "%" else number * _UNITS[unit]
    if limit <= 0 < start:
        message = f"{where}{name} must be above 0; got {asked!r}"
        raise UserError("E113", message, "no model is that small: raise it, or leave it out")
    return limit


def _drop(asked: str) -> tuple[float, bool]:
    number, unit = _parse("goal.max_drop", asked, ("pt", "%"))
    return number / 100, unit == "%"


def _fraction(asked: str | float) -> float:
    if isinstance(asked, (int, float)):
        return _finite("goal.metric", asked)
    number, unit = _parse("goal.metric", asked, ("%", ""))
    return number / 100 if unit == "%" else number


def _finite(name: str, asked: float) -> float:
    if not math.isfinite(asked):
        raise UserError("E113", f"{name} must be finite; got {asked!r}", "give a number, or leave it out")
    return float(asked)


def _parse(name: str, asked: str, units: tuple[str, ...]) -> tuple[float, str]:
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z%]*)\s*", asked) if isinstance(asked, str) else None
    if found is None or found[2] not in units:
        choices = ", ".join(f'"5 {unit}"'.replace(" %", "%").replace(" pt", "pt").strip() for unit in units)
        raise UserError("E113", f"{name} cannot be read; got {asked!r}", f"write a number and a unit, such as {choices}")
    return float(found[1]), found[2]
