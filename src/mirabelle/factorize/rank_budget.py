"""The ranks of all layers together under limits on the cost of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from torch import nn

from mirabelle.allocation.knapsack import Constraint, Table, allocate
from mirabelle.allocation.limits import BYTES, Stopwatch
from mirabelle.errors import UserError
from mirabelle.factorize.candidate import Candidate, CandidateTimes, Cost, Ranks
from mirabelle.factorize.rank_rule import RankRule
from mirabelle.model.counting import macs_of
from mirabelle.task.goal import limit_of
from mirabelle.task.task import Task

_ROUNDS = 6  # of planning and timing the whole model
_GAP = 2e-3  # accepted distance of a plan to the optimum
_SAFELY = 0.99  # an exceeded limit is aimed at with this factor in the next round
_LEAST = 1e-12  # a share that is kept, in a logarithm

Built = Callable[[Mapping[str, Ranks]], nn.Module]


class RankBudget:
    """Chooses ranks so that limits hold and the least is lost: −Σ ln(share of the squared norm that a layer keeps).

    Args:
        rule: gives the limits.
        candidates: the layers.
        times: of layers and their factors.
    """

    def __init__(self, rule: RankRule, candidates: Sequence[Candidate], times: CandidateTimes) -> None:
        self._rule, self._candidates, self._times = rule, candidates, times
        self._levels = [candidate.levels(rule.least_multiple) for candidate in candidates]

    def within_limits(self, model: nn.Module, task: Task, built: Built) -> tuple[dict[str, Ranks], dict[str, str]]:
        """The ranks of layers that become factors, and why the others do not.

        Raises:
            UserError: E114 if a limit cannot be reached.
        """
        budgets = self._counted(model, task)
        chosen = self._chosen(budgets) if self._rule.limits.latency is None else self._timed(model, task, built, budgets)
        least = [candidate.rounded((1,) * len(candidate.lost), self._rule.least_multiple) for candidate in self._candidates]
        why = {
            candidate.name: candidate.why_not_smaller(lowest) if len(levels) == 1 else "the limits hold without factors of it"
            for candidate, levels, lowest in zip(self._candidates, self._levels, least, strict=True)
            if candidate.name not in chosen
        }
        return chosen, why

    def _chosen(self, budgets: Sequence[Constraint]) -> dict[str, Ranks]:
        choice = allocate(self._damages, budgets, gap=_GAP).choice
        pairs = zip(self._candidates, self._levels, choice, strict=True)
        return {candidate.name: levels[option] for candidate, levels, option in pairs if levels[option]}

    @cached_property
    def _damages(self) -> list[Table]:
        return [
            np.array([-math.log(max(1.0 - candidate.share_lost(ranks), _LEAST)) for ranks in levels])
            for candidate, levels in zip(self._candidates, self._levels, strict=True)
        ]

    def _counted(self, model: nn.Module, task: Task) -> list[Constraint]:
        """The limits on multiply-accumulates, parameters and size."""
        parameters = sum(parameter.numel() for parameter in model.parameters())
        kinds: tuple[tuple[str, Callable[[], float], Callable[[Cost], float]], ...] = (
            ("macs", lambda: macs_of(model, task.example()).total, lambda cost: cost.macs),
            ("parameters", lambda: parameters, lambda cost: cost.parameters),
            ("size", lambda: BYTES * parameters, lambda cost: BYTES * cost.parameters),
        )
        found = []
        for name, total, of in kinds:
            asked = getattr(self._rule.limits, name)
            if asked is not None:
                costs = [
                    [float(of(candidate.cost(ranks))) for ranks in levels]
                    for candidate, levels in zip(self._candidates, self._levels, strict=True)
                ]
                whole = float(total())
                found.append(_budget(name, limit_of(name, asked, whole, where=""), whole, costs))
        return found

    def _timed(self, model: nn.Module, task: Task, built: Built, budgets: Sequence[Constraint]) -> dict[str, Ranks]:
        """Planned with the times of single operators, then checked by timing the whole model; while it is too slow, again."""
        pairs = [(own, ranks) for own, levels in zip(self._candidates, self._levels, strict=True) for ranks in levels]
        times = iter(self._times(pairs))
        costs = [[next(times) for _ in levels] for levels in self._levels]
        watch = Stopwatch(model, task, self._rule.batch)
        limit = limit_of("latency", self._rule.limits.latency or 0.0, watch.start_ms, where="")
        budget = _budget("latency", limit, watch.start_ms, costs)
        measured = watch.start_ms
        for _ in range(_ROUNDS):
            ranks = self._chosen([*budgets, budget])
            measured = watch(built(ranks)) if ranks else watch.start_ms
            if measured <= limit:
                return ranks
            budget = replace(budget, limit=budget.limit * limit / measured * _SAFELY)
        message = f"latency of at most {limit:.6g} ms cannot be reached by low rank: the nearest plan takes {measured:.6g} ms"
        raise UserError("E114", message, "raise the limit, lower `multiple`, or shorten `exclude`", path=("latency",))


def _budget(name: str, limit: float, whole: float, costs: Sequence[Sequence[float]]) -> Constraint:
    """The cost of a model as a sum over layers; what the layers that stay cost is its constant part.

    Args:
        name: of the cost.
        limit: the most that it may be.
        whole: the cost of the model as it is.
        costs: for each layer the costs of its options, of which the last is the layer as it is.
    """
    tables: dict[tuple[int, ...], Table] = {(position,): np.array(own, np.float64) for position, own in enumerate(costs)}
    return Constraint(name, limit, {(): np.array(whole - sum(own[-1] for own in costs)), **tables})
