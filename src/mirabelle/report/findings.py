"""The parts of a report: comparison, goal, steps, gates and layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mirabelle.model.left_alone import LeftAlone
from mirabelle.runtime.latency import Ratio
from mirabelle.task.goal import Shortfall
from mirabelle.task.profile import Latency, Profile

_SIGNIFICANT = 0.05
_SHOWN = 8  # layers in a sentence


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
class LayerTimes:
    """The milliseconds of a layer that does not gain: before a step and after it, with its conversions."""

    name: str
    before_ms: float
    after_ms: float

    def __str__(self) -> str:
        return f"{self.name} {self.before_ms:.3g} → {self.after_ms:.3g} ms"


@dataclass(frozen=True)
class StepSpeed:
    """What a step does to the latency, and what of it was undone since it does not pay.

    Args:
        step: name of the step.
        before: latency before the step.
        after: latency after the whole step.
        ratio: after / before.
        undone: whether the step was undone as a whole.
        returned: the layers that the step would have made slower, or no faster, and that were left as they are.
        kept: ratio of the model that was kept to the model before the step, if only some layers were left as they are.
        kept_ms: latency of this model in milliseconds.
    """

    step: str
    before: Latency
    after: Latency
    ratio: Ratio
    undone: bool = False
    returned: tuple[LayerTimes, ...] = ()
    kept: Ratio | None = None
    kept_ms: float | None = None

    def to_data(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> StepSpeed:
        kept = data["kept"]
        return StepSpeed(
            data["step"],
            Latency(**data["before"]),
            Latency(**data["after"]),
            Ratio(**data["ratio"]),
            data["undone"],
            tuple(LayerTimes(**layer) for layer in data["returned"]),
            Ratio(**kept) if kept else None,
            data["kept_ms"],
        )

    def in_words(self) -> str:
        """Whether the step paid, in milliseconds, and what was undone."""
        text = f"{self.before.median:.3g} → {self.after.median:.3g} ms, {self.ratio.in_words()}"
        layers = ", ".join(map(str, self.returned[:_SHOWN]))
        more = len(self.returned) - _SHOWN
        layers += f" and {more} more" if more > 0 else ""
        if self.undone:
            why = f"; slower layers: {layers}" if layers else ""
            return f"{text}: undone as a whole{why}"
        if self.kept is not None and self.kept_ms is not None:
            return f"{text}; without {layers}: {self.kept_ms:.3g} ms, {self.kept.in_words()}, and so these layers are left"
        return f"{text}: {'paid' if self.ratio.faster else 'no gain in time'}"


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
