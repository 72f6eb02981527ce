"""What a comparison of recipes found: means, intervals and paired tests, as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mirabelle.errors import UserError
from mirabelle.numerics.statistics import Scores, student_interval
from mirabelle.records.record import Count, Positive, record
from mirabelle.task.metric import Metric


@record
class Budget:
    """What every candidate may spend, and what its result may need.

    Args:
        steps: optimizer steps of all trainings of a recipe together; each gets its share by what it asks for.
        seconds: of all trainings together, validation counted in, turned into steps by timing a few of each; the same steps for
            every seed. What a teacher gives for the first time is kept, and not counted.
        size_bytes: packed bytes that a result may have.
        milliseconds: of one call in ONNX Runtime that a result may take.

    Raises:
        UserError: E111 both steps and seconds.

    Example:
        >>> Budget(seconds=480.0).steps is None
        True
    """

    steps: Count | None = None
    seconds: Positive | None = None
    size_bytes: Count | None = None
    milliseconds: Positive | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.seconds is not None:
            raise UserError("E111", "a budget has steps or seconds of training, one of them", "leave one out")


@dataclass(frozen=True)
class Outcome:
    """One candidate with one seed.

    Args:
        seed: of everything random.
        metric: of the split that judges.
        scores: of each of its samples, in their order.
        seconds: of all steps.
        parameters: non-zero ones.
        size_bytes: packed.
        milliseconds: of one call, where the budget asks for it.
    """

    seed: int
    metric: float
    scores: Scores
    seconds: float
    parameters: int
    size_bytes: int
    milliseconds: float | None


@dataclass(frozen=True)
class ComparisonRow:
    """A candidate over all seeds.

    Args:
        name: of the candidate.
        metric: mean over the seeds, with its 95 % interval (Student's; of one seed that of its samples).
        difference: to the reference, mean over seeds that are paired, with its interval; None for the reference.
        p_value: that a candidate as good as the reference shows such a difference on these samples, by scores averaged over the
            seeds; None for the reference.
        seconds, parameters, size_bytes: means over the seeds.
        over: what of the budget the results exceed, in words.
    """

    name: str
    metric: tuple[float, float, float]
    difference: tuple[float, float, float] | None
    p_value: float | None
    seconds: float
    parameters: float
    size_bytes: float
    over: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Args:
        metric: that judged.
        judge: the split that judged.
        reference: the candidate to which the others are compared.
        budget: of each.
        outcomes: by candidate, in the order of the seeds.
    """

    metric: Metric
    judge: str
    reference: str
    budget: Budget
    outcomes: Mapping[str, Sequence[Outcome]]

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
            name = f"{row.name} ({'; '.join(row.over)})" if row.over else row.name
            lines.append(
                f"| {name} | {_interval(row.metric)} | {difference} | {p_value} | {row.seconds:,.0f} | {row.size_bytes:,.0f} |"
            )
        return "\n".join(lines) + "\n"

    def _row(self, name: str, outcomes: Sequence[Outcome]) -> ComparisonRow:
        difference, p_value = None, None
        if name != self.reference:
            pairs = list(zip(self.outcomes[self.reference], outcomes, strict=True))
            p_value = self.metric.p_value(*([pair[side].scores for pair in pairs] for side in (0, 1)))
            if len(pairs) == 1:
                difference = self.metric.difference(pairs[0][0].scores, pairs[0][1].scores)
            else:
                difference = student_interval(_spread([after.metric - before.metric for before, after in pairs]))
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
            tuple(_over(self.budget, outcomes)),
        )


def _over(budget: Budget, outcomes: Sequence[Outcome]) -> list[str]:
    """What the results need beyond the budget."""
    said = []
    size = max(one.size_bytes for one in outcomes)
    if budget.size_bytes is not None and size > budget.size_bytes:
        said.append(f"{size:,} bytes of {budget.size_bytes:,}")
    times = [one.milliseconds for one in outcomes if one.milliseconds is not None]
    if budget.milliseconds is not None and max(times) > budget.milliseconds:
        said.append(f"{max(times):.2f} ms of {budget.milliseconds:.2f}")
    return said


def _spread(values: Sequence[float]) -> Scores:
    return np.array(values, float)


def _interval(found: tuple[float, float, float], sign: str = "") -> str:
    mean, low, high = found
    return f"{mean:{sign}.4f} ({low:{sign}.4f} to {high:{sign}.4f})"
