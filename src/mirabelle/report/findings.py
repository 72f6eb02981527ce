"""What a run found out, in the parts that page, card and terminal show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mirabelle.runtime.latency import Ratio
from mirabelle.task.goal import Shortfall
from mirabelle.task.profile import Profile

_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Difference:
    """End - start of the metric on the same samples, with its 95 % interval [low, high]."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Significance:
    """End against start on the same samples: the paired test's p-value, the ratio of latencies, the metric's difference."""

    p_value: float
    latency_ratio: Ratio
    difference: Difference | None = None

    @property
    def different(self) -> bool:
        return self.p_value < _SIGNIFICANT


@dataclass(frozen=True)
class Judgement:
    """The goal as it was asked for, and the parts of it that do not hold."""

    asked: Mapping[str, Any]
    shortfalls: tuple[Shortfall, ...]

    @property
    def met(self) -> bool:
        return not self.shortfalls


@dataclass(frozen=True)
class Milestone:
    """One step of the trail: its name, the model's profile after it (metric on validation), and the seconds it took."""

    step: str
    profile: Profile
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a gate said; `worst` is None where the difference is without bound."""

    passed: bool
    worst: float | None
    detail: str


@dataclass(frozen=True)
class Share:
    """One layer of the file that ships."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int | None
    sparsity: float
    size_bytes: int
