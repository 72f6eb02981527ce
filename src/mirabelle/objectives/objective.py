"""The training loss as a weighted sum of terms, written like its formula.

In Python: `0.9 * SoftTargets(temperature=4) + 0.1 * TaskLoss() + 1e-4 * L1()`; in TOML: a list of `{term, weight, …}` tables.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import PlainValidator

from mirabelle import records
from mirabelle.errors import UserError, at_path, gathered, raise_all
from mirabelle.objectives.forward import MeanOver
from mirabelle.records.families import Family, subclass_of
from mirabelle.records.schedules import Annealed

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.objectives.bound_objective import BoundObjective
    from mirabelle.task.batch import Batch
    from mirabelle.task.task import Task


class Term(ABC):
    """A differentiable term of the training loss: an immutable record that is bound to a model before it is used."""

    needs_teacher: bool = False
    mean_over: ClassVar[MeanOver] = "samples"  # see `forward.Shares`
    remembers_samples: ClassVar[bool] = False  # whether it keeps something of each sample, which each process would do apart
    reads_weights: ClassVar[bool] = False  # whether it reads weights of the model, not only what a forward pass gives

    @abstractmethod
    def bind(self, model: nn.Module, task: Task, example: Batch) -> nn.Module:
        """A module that maps a `Forward` to a scalar loss.

        Parameters of this module are trained together with the model, and dropped after the training.

        Args:
            model: the model that is trained.
            task: gives the data, the task's loss and the teacher.
            example: a small batch of inputs, for the shapes.
        """

    def mean_in(self, task: Task) -> MeanOver:
        """What the term is a mean over, for a task."""
        del task
        return self.mean_over

    def __rmul__(self, weight: float | Annealed) -> Objective:
        return Objective(terms=((weight if isinstance(weight, Annealed) else float(weight), self),))

    def __add__(self, other: Term | Objective) -> Objective:
        return 1.0 * self + other


@dataclass(frozen=True)
class Objective:
    """A weighted sum of terms: L = Σ weight · term. A weight may change during training (`schedules.Annealed`)."""

    terms: tuple[tuple[float | Annealed, Term], ...]

    def __add__(self, other: Term | Objective) -> Objective:
        return Objective(self.terms + (other.terms if isinstance(other, Objective) else ((1.0, other),)))

    def __rmul__(self, weight: float | Annealed) -> Objective:
        return Objective(tuple((_product(weight, own), term) for own, term in self.terms))

    @property
    def needs_teacher(self) -> bool:
        return any(term.needs_teacher for _, term in self.terms)

    def bind(self, model: nn.Module, task: Task, example: Batch) -> BoundObjective:
        """The loss as a module for one model.

        Args:
            model: the model that is trained.
            task: gives the data, the task's loss and the teacher.
            example: a small batch of inputs, for the shapes.

        Raises:
            UserError: E111 if a term needs a teacher and the task has none; and the errors of the terms' own `bind`.
        """
        from mirabelle.objectives.bound_objective import BoundObjective

        if self.needs_teacher and task.teacher is None:
            names = ", ".join(type(term).__name__ for _, term in self.terms if term.needs_teacher)
            raise UserError("E111", f"{names} needs a teacher and the task has none", "give one with task.with_teacher(model)")
        weights, terms = [weight for weight, _ in self.terms], [term for _, term in self.terms]
        return BoundObjective(
            weights, [term.bind(model, task, example) for term in terms], [term.mean_in(task) for term in terms]
        )

    def to_data(self) -> list[dict[str, Any]]:
        return [
            {
                "term": TERMS.name_of(type(term), with_path=True),
                "weight": records.to_data(weight) if isinstance(weight, Annealed) else weight,
                **records.to_data(term),
            }
            for weight, term in self.terms
        ]

    @staticmethod
    def from_data(data: Any) -> Objective:
        """An objective from a list of `{term, weight, …}` tables.

        Raises:
            UserError: E104 if a table names no term, E106 if a term is unknown, E120 if a user's own term is not found, E102 or
                E103 if its settings are wrong.
        """
        if isinstance(data, Objective):
            return data
        if not isinstance(data, list) or not data:
            raise UserError(
                "E103", "an objective is a list of tables", 'write objective = [{ term = "TaskLoss", weight = 1.0 }]'
            )
        mistakes: list[UserError] = []
        terms: list[tuple[float | Annealed, Term]] = []
        for position, table in enumerate(data):
            with gathered(mistakes, position):
                terms.append(_weighted_term(table))
        raise_all(mistakes)
        return Objective(tuple(terms))


def _product(one: float | Annealed, other: float | Annealed) -> float | Annealed:
    if isinstance(one, Annealed):
        if isinstance(other, Annealed):
            message = "a weight that changes during training cannot be multiplied by another one that changes"
            raise UserError("E111", message, "combine the two into one schedule")
        return one.times(other)
    return other.times(one) if isinstance(other, Annealed) else one * other


def _weighted_term(table: Any) -> tuple[float | Annealed, Term]:
    settings = dict(table) if isinstance(table, Mapping) else {}
    name, weight = settings.pop("term", None), settings.pop("weight", 1.0)
    if not isinstance(name, str):
        raise UserError("E104", 'every table of an objective needs the key "term"', 'for example: term = "TaskLoss"')
    if isinstance(weight, Mapping):
        weight = records.build(Annealed, weight, "weight")
    elif not isinstance(weight, (int, float)) or isinstance(weight, bool) or not math.isfinite(weight):
        raise UserError(
            "E103",
            f"the weight of {name} must be a finite number; got {weight!r}",
            "for example: weight = 0.5",
            path=("weight",),
        )
    with at_path("term"):
        cls = TERMS.member(name)
    term: Term = records.build(cls, settings, name)
    return weight if isinstance(weight, Annealed) else float(weight), term


TERMS = Family("term", ("objectives",), subclass_of(Term), qualified=False)
ObjectiveField = Annotated[Objective, PlainValidator(Objective.from_data)]
