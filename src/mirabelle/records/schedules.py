"""Progress in [0, 1] -> how much of a change is made, in [0, 1]."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from mirabelle.errors import UserError
from mirabelle.records.record import Count, Finite, Fraction, Share, build, record

ScheduleName = Literal["constant", "linear", "cubic"]
_NAMES = ("one-shot", "constant", "linear", "cubic")
_CHANGES = 100
_POWERS: dict[str, float] = {"linear": 1.0, "cubic": 3.0}


@record
class Gradual:
    """Sparsity that grows while a model trains, from `initial` to `final`.

    s(p) = final + (initial − final) · (1 − (p − begin) / (end − begin))^power   for begin ≤ p ≤ end

    and `initial` before, `final` after. Power 1 is linear, 3 the cubic schedule; `constant` jumps at `begin`.

    Args:
        begin, end: progress of the training, in [0, 1], at which growth begins and ends.
        initial: the amount at `begin`, in [0, 1); never more than the final one.
        power: of the polynomial; infinity jumps.
        frequency: optimizer steps from one change to the next; by default the growth takes about a hundred changes.

    Example:
        >>> round(Gradual(begin=0.0, end=0.5, power=3.0).at(0.25, final=0.8), 6)
        0.7

    Source: Zhu & Gupta 2017, arXiv:1710.01878, equation 1.
    """

    begin: Share = 0.0
    end: Share = 0.6
    initial: Fraction = 0.0
    power: Annotated[float, Field(gt=0)] = 3.0
    frequency: Count | None = None

    def __post_init__(self) -> None:
        if self.begin > self.end:
            raise UserError(
                "E111",
                f"schedule.begin = {self.begin:g} lies after schedule.end = {self.end:g}",
                "begin earlier, or end later",
                path=("begin",),
            )

    @staticmethod
    def named(name: ScheduleName) -> Gradual:
        """Growth by name: `constant` jumps at the start of training, the others grow over its first 60 %."""
        return Gradual(end=0.0) if name == "constant" else Gradual(power=_POWERS[name])

    @staticmethod
    def of(schedule: ScheduleName | Gradual) -> Gradual:
        """The schedule itself, or the one of that name."""
        return schedule if isinstance(schedule, Gradual) else Gradual.named(schedule)

    def due(self, step: int, progress: float, last: float) -> bool:
        """Whether a change is due at this optimizer step, the last one having come at progress `last`."""
        if not self.begin <= progress < self.end:
            return False
        return step % self.frequency == 0 if self.frequency else progress - last >= (self.end - self.begin) / _CHANGES

    def at(self, progress: float, final: float) -> float:
        """The sparsity at `progress`."""
        if progress < self.begin:
            return min(self.initial, final)
        if progress >= self.end:
            return final
        remaining = 1 - (progress - self.begin) / (self.end - self.begin)
        return float(final + (min(self.initial, final) - final) * remaining**self.power)


@record
class Annealed:
    """A number that changes while a model trains: a weight of the loss, a temperature.

    v(p) = end + (start − end) · f(min(1, p / until)),   f(q) = 1 − q if linear, ½ · (1 + cos(π q)) if cosine

    Args:
        start: at the beginning.
        end: from progress `until` on.
        until: progress of the training, in (0, 1].
        shape: of the way from the one to the other.

    Example:
        >>> Annealed(start=8.0, end=1.0).at(0.5)
        4.5

    Source: Jafari, Rezagholizadeh, Sharma, Ghodsi 2021, "Annealing Knowledge Distillation", arXiv:2104.07163 (temperatures).
    """

    start: Finite
    end: Finite
    until: Annotated[float, Field(gt=0, le=1)] = 1.0
    shape: Literal["linear", "cosine"] = "linear"

    def at(self, progress: float) -> float:
        """The number at a progress in [0, 1]."""
        q = min(1.0, progress / self.until)
        left = 1 - q if self.shape == "linear" else 0.5 * (1 + math.cos(math.pi * q))
        return self.end + (self.start - self.end) * left

    def times(self, factor: float) -> Annealed:
        """The same, every number times a factor."""
        return Annealed(start=factor * self.start, end=factor * self.end, until=self.until, shape=self.shape)


def value_at(number: float | Annealed, progress: float) -> float:
    """What a number is at a progress in [0, 1], whether it changes or not."""
    return number.at(progress) if isinstance(number, Annealed) else number


def _schedule_from_data(data: Any) -> Any:
    if isinstance(data, Gradual) or data in _NAMES:
        return data
    if isinstance(data, dict):
        return build(Gradual, data, "schedule")
    raise UserError("E103", f"schedule {data!r} is not known", f"choose {', '.join(_NAMES)}, or a table with begin and end")


ScheduleField = Annotated[Literal["one-shot"] | ScheduleName | Gradual, PlainValidator(_schedule_from_data)]
LearningRateSchedule = Literal["constant", "linear", "cosine", "one-cycle"]


def learning_rate_factor(schedule: LearningRateSchedule, progress: float, warmup: float) -> float:
    """The factor of the learning rate at `progress`: a linear rise during `warmup`, then the schedule down to 0.

    cosine: ½ · (1 + cos(π q)), linear and one-cycle: 1 − q, with q = (progress − warmup) / (1 − warmup).
    `one-cycle` rises over the first 30 % unless a longer warmup is given.

    Example:
        >>> learning_rate_factor("cosine", 0.5, warmup=0.0)
        0.5

    Source: cosine: Loshchilov & Hutter 2017, arXiv:1608.03983; one-cycle: Smith & Topin 2018, arXiv:1708.07120.
    """
    warmup = max(warmup, 0.3) if schedule == "one-cycle" else warmup
    if progress < warmup:
        return progress / warmup
    if schedule == "constant" or warmup >= 1:
        return 1.0
    rest = (progress - warmup) / (1 - warmup)
    return round(0.5 * (1 + math.cos(math.pi * rest)), 15) if schedule == "cosine" else 1 - rest
