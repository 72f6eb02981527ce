"""The parts of a report: comparison, goal, steps, gates and layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mirabelle.model.left_alone import LeftAlone
from mirabelle.runtime.latency import Ratio
from mirabelle.task.goal import Shortfall
from mirabelle.task.profile import Profile

_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Difference:
    """The change of the metric, end − start, on the same samples, with its 95 % confidence interval [low, high]."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Significance:
    """Comparison of the compressed model (end) with the dense model (start) on the same samples.

    Args:
        p_value: of the paired test of the metric.
        latency_ratio: end / start, with its 95 % confidence interval.
        difference: end − start of the metric; None in reports of earlier versions.
    """

    p_value: float
    latency_ratio: Ratio
    difference: Difference | None = None

    @property
    def different(self) -> bool:
        """Whether the metric differs significantly: p < 0.05."""
        return self.p_value < _SIGNIFICANT


@dataclass(frozen=True)
class ConstantAnswer:
    """The best answer that is the same for every input, on the test set, beside the models before and after compression.

    Args:
        answer: in words, such as "class 3".
        value: its metric.
        start_learned: whether the model before compression is better than it; only then is a change of the metric a gain or a
            loss of the compression.
        end_learned: whether the compressed model is better than it.
    """

    answer: str
    value: float
    start_learned: bool
    end_learned: bool


@dataclass(frozen=True)
class Judgement:
    """The goal as written in the recipe, and the parts of it that are not met."""

    asked: Mapping[str, Any]
    shortfalls: tuple[Shortfall, ...]

    @property
    def met(self) -> bool:
        return not self.shortfalls


@dataclass(frozen=True)
class Milestone:
    """One completed step: its name, the model's profile after it (metric on the validation split), and its duration."""

    step: str
    profile: Profile
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """The result of a gate. `worst` is the largest difference found; None if it is infinite or NaN."""

    passed: bool
    worst: float | None
    detail: str


@dataclass(frozen=True)
class Left:
    """What a step left as it is, and why; shares are those of the model after the step."""

    step: str
    what: LeftAlone


@dataclass(frozen=True)
class Share:
    """One layer of the exported ONNX file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int | None
    sparsity: float
    size_bytes: int
