"""Schedules: values that change with the progress of a training, such as sparsity, loss weights and the learning rate.

The progress of a training is a number in [0, 1].
"""

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
    """Gradual pruning: the sparsity grows from `initial` to `final` while the model is trained.

    s(p) = final + (initial − final) · (1 − (p − begin) / (end − begin))^power   for begin ≤ p ≤ end

    s(p) = initial before, and final after. The final sparsity is that of the pruning step. Power 1 gives the linear schedule,
    power 3 the cubic one. With begin = end the sparsity jumps.

    Args:
        begin, end: progress of the training, in [0, 1], at which the sparsity begins and ends to grow.
        initial: sparsity at `begin`, in [0, 1); limited to the final sparsity.
        power: exponent of the polynomial; with infinity the sparsity jumps.
        frequency: number of optimizer steps between changes of the sparsity; by default there are about 100 changes.

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
                f"schedule.begin = {self.begin:g} is greater than schedule.end = {self.end:g}",
                "give begin ≤ end",
                path=("begin",),
            )

    @staticmethod
    def named(name: ScheduleName) -> Gradual:
        """The schedule of a name: "constant" jumps at the start of training, the others grow over its first 60 %."""
        return Gradual(end=0.0) if name == "constant" else Gradual(power=_POWERS[name])

    @staticmethod
    def of(schedule: ScheduleName | Gradual) -> Gradual:
        """A schedule given by name or as an object."""
        return schedule if isinstance(schedule, Gradual) else Gradual.named(schedule)

    def due(self, step: int, progress: float, last: float) -> bool:
        """Whether to change the sparsity at this optimizer step.

        Args:
            step: number of the optimizer step.
            progress: of the training, in [0, 1].
            last: progress at the previous change.
        """
        if not self.begin <= progress < self.end:
            return False
        return step % self.frequency == 0 if self.frequency else progress - last >= (self.end - self.begin) / _CHANGES

    def at(self, progress: float, final: float) -> float:
        """The sparsity at a progress in [0, 1], given the final sparsity."""
        if progress < self.begin:
            return min(self.initial, final)
        if progress >= self.end:
            return final
        remaining = 1 - (progress - self.begin) / (self.end - self.begin)
        return float(final + (min(self.initial, final) - final) * remaining**self.power)


@record
class Annealed:
    """A number that changes while a model is trained, such as the weight of a loss term or a temperature.

    v(p) = end + (start − end) · f(min(1, p / until)),   f(q) = 1 − q if linear, ½ · (1 + cos(π q)) if cosine

    Args:
        start: value at the start of the training.
        end: value from progress `until` on.
        until: progress of the training at which `end` is reached, in (0, 1].
        shape: of the transition, "linear" or "cosine".

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
        """The value at a progress in [0, 1]."""
        q = min(1.0, progress / self.until)
        left = 1 - q if self.shape == "linear" else 0.5 * (1 + math.cos(math.pi * q))
        return self.end + (self.start - self.end) * left

    def times(self, factor: float) -> Annealed:
        """The schedule with all values multiplied by a factor."""
        return Annealed(start=factor * self.start, end=factor * self.end, until=self.until, shape=self.shape)


def value_at(number: float | Annealed, progress: float) -> float:
    """The value of a constant or scheduled number at a progress in [0, 1]."""
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
    """The factor by which the learning rate is multiplied at `progress`.

    During the warmup the factor is progress / warmup. Afterwards, with q = (progress − warmup) / (1 − warmup), it is 1 for
    "constant", ½ · (1 + cos(π q)) for "cosine", and 1 − q for "linear" and "one-cycle".

    Args:
        schedule: name of the schedule.
        progress: of the training, in [0, 1].
        warmup: fraction of the training, in [0, 1]; at least 0.3 for "one-cycle".

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
