"""Results of a comparison of recipes: means, confidence intervals and paired tests, as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mirabelle.errors import UserError
from mirabelle.job.learned import Standing, nothing_learned
from mirabelle.numerics.statistics import Scores, student_interval
from mirabelle.records.record import Count, Positive, record
from mirabelle.task.metric import Metric

_NOISE_OF_TIMES = 1.1
_THOUSAND = 1000


@record
class Budget:
    """Limits on the training of each candidate, and on its result.

    Args:
        steps: total number of optimizer steps of all trainings of a recipe, divided in proportion to their given lengths.
        seconds: total duration of all trainings of a recipe, including validation. It is converted to optimizer steps by timing
            a few of each training, and all seeds use the same number. Computing the outputs of the teacher is not counted.
        size_bytes: limit on the size of the packed file.
        macs: limit on the multiply-accumulate operations for one sample.
        milliseconds: limit on the latency of a call in ONNX Runtime; up to a tenth more is taken for noise.

    Raises:
        UserError: E111 if both steps and seconds are given.

    Example:
        >>> Budget(seconds=480.0).steps is None
        True
    """

    steps: Count | None = None
    seconds: Positive | None = None
    size_bytes: Count | None = None
    macs: Count | None = None
    milliseconds: Positive | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.seconds is not None:
            raise UserError("E111", "a budget limits either steps or seconds, not both", "leave one out")


@dataclass(frozen=True)
class Outcome:
    """The result of one candidate with one seed.

    Args:
        seed: of all random numbers.
        metric: value on the split of the evaluation.
        scores: scores of the samples of this split, in their order.
        seconds: duration of all steps.
        parameters: number of non-zero parameters.
        size_bytes: size of the packed file.
        macs: multiply-accumulate operations for one sample.
        milliseconds: latency of a call; None if the budget does not limit it.
    """

    seed: int
    metric: float
    scores: Scores
    seconds: float
    parameters: int
    size_bytes: int
    macs: int
    milliseconds: float | None


@dataclass(frozen=True)
class ComparisonRow:
    """The results of a candidate over all seeds.

    Args:
        name: of the candidate.
        metric: mean over the seeds and bounds of its 95 % confidence interval (Student's t; for one seed over its samples).
        difference: mean difference to the reference over paired seeds, with its interval; None for the reference.
        p_value: of a paired test against the reference, on scores of the samples averaged over the seeds; None for the
            reference.
        seconds, parameters, size_bytes, macs, milliseconds: means over the seeds; milliseconds are None if they were not
            measured.
        over: limits of the budget that the results exceed, as text.
        idle: that the metric is not above that of the same answer for every input, as text; empty if it is.
    """

    name: str
    metric: tuple[float, float, float]
    difference: tuple[float, float, float] | None
    p_value: float | None
    seconds: float
    parameters: float
    size_bytes: float
    macs: float
    milliseconds: float | None
    over: tuple[str, ...]
    idle: str = ""

    @property
    def title(self) -> str:
        """The name with what is to be known about it."""
        remarks = [*self.over, *([self.idle] if self.idle else [])]
        return f"{self.name} ({'; '.join(remarks)})" if remarks else self.name


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison.

    Args:
        metric: of the evaluation.
        judge: the split of the evaluation.
        reference: name of the candidate with which the others are compared.
        budget: of each candidate.
        outcomes: name of each candidate -> its results, in the order of the seeds.
        start: the model from which all start, beside the best answer that is the same for every input.
    """

    metric: Metric
    judge: str
    reference: str
    budget: Budget
    outcomes: Mapping[str, Sequence[Outcome]]
    start: Standing | None = None

    def rows(self) -> list[ComparisonRow]:
        """The candidates, best first."""
        found = [self._row(name, outcomes) for name, outcomes in self.outcomes.items()]
        return sorted(found, key=lambda row: -row.metric[0])

    def table(self) -> str:
        """The rows as a Markdown table."""
        lines = [
            f"| | {self.metric.name} | against {self.reference} | p | seconds | bytes |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        for row in self.rows():
            difference = "" if row.difference is None else _interval(row.difference, sign="+")
            p_value = "" if row.p_value is None else f"{row.p_value:.2g}"
            cells = (row.title, _interval(row.metric), difference, p_value, f"{row.seconds:,.0f}", f"{row.size_bytes:,.0f}")
            lines.append(f"| {' | '.join(cells)} |")
        if self.start is not None and not self.start.learned:
            words = nothing_learned("The model from which all start", self.start, self.judge)
            lines += ["", f"{words}. Differences to it are no gain or loss of a recipe."]
        return "\n".join(lines) + "\n"

    def difference(self, before: str, after: str) -> tuple[tuple[float, float, float], float]:
        """How much a candidate is ahead of another: ((mean over paired seeds, bounds of its interval), p of a paired test)."""
        pairs = list(zip(self.outcomes[before], self.outcomes[after], strict=True))
        p_value = self.metric.p_value(*([pair[side].scores for pair in pairs] for side in (0, 1)))
        if len(pairs) == 1:
            return self.metric.difference(pairs[0][0].scores, pairs[0][1].scores), p_value
        return student_interval(_spread([second.metric - first.metric for first, second in pairs])), p_value

    def _row(self, name: str, outcomes: Sequence[Outcome]) -> ComparisonRow:
        difference, p_value = (None, None) if name == self.reference else self.difference(self.reference, name)
        return ComparisonRow(
            name,
            self.metric.interval(outcomes[0].scores)
            if len(outcomes) == 1
            else student_interval(_spread([one.metric for one in outcomes])),
            difference,
            p_value,
            statistics.mean(one.seconds for one in outcomes),
            statistics.mean(one.parameters for one in outcomes),
            statistics.mean(one.size_bytes for one in outcomes),
            statistics.mean(one.macs for one in outcomes),
            statistics.mean(times) if (times := _times(outcomes)) else None,
            tuple(_over(self.budget, outcomes)),
            self._not_above_constant(outcomes),
        )

    def _not_above_constant(self, outcomes: Sequence[Outcome]) -> str:
        constant = None if self.start is None else self.start.constant
        if constant is None or statistics.mean(one.metric for one in outcomes) > constant.value:
            return ""
        return f"not above {constant.value:.4f}, the same answer for every input"


def _over(budget: Budget, outcomes: Sequence[Outcome]) -> list[str]:
    """The limits of the budget that the results exceed, as text."""
    exceeded = []
    size = max(one.size_bytes for one in outcomes)
    if budget.size_bytes is not None and size > budget.size_bytes:
        exceeded.append(f"{size:,} bytes of {budget.size_bytes:,}")
    macs = max(one.macs for one in outcomes)
    if budget.macs is not None and macs > budget.macs:
        exceeded.append(f"{macs:,} multiply-accumulates of {budget.macs:,}")
    times = _times(outcomes)
    if budget.milliseconds is not None and max(times) > _NOISE_OF_TIMES * budget.milliseconds:
        exceeded.append(f"{_in_ms(max(times))} of {_in_ms(budget.milliseconds)}")
    return exceeded


def _in_ms(time: float) -> str:
    return f"{time:,.0f} ms" if time >= _THOUSAND else f"{time:.4g} ms"


def _times(outcomes: Sequence[Outcome]) -> list[float]:
    return [one.milliseconds for one in outcomes if one.milliseconds is not None]


def _spread(values: Sequence[float]) -> Scores:
    return np.array(values, float)


def _interval(found: tuple[float, float, float], sign: str = "") -> str:
    mean, low, high = found
    return f"{mean:{sign}.4f} ({low:{sign}.4f} to {high:{sign}.4f})"
