"""The ranks of all layers of a model, and why a layer is left as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from mirabelle.errors import UserError
from mirabelle.factorize.candidate import Candidate, CandidateTimes, Ranks, shown
from mirabelle.factorize.rank_budget import RankBudget
from mirabelle.factorize.rank_rule import RankRule
from mirabelle.records.patterns import every_pattern_matches, matches
from mirabelle.run.run import Run
from mirabelle.task.task import Task

_MULTIPLES = (4, 8, 16)  # to which "measured" tries to raise a rank
_AS_FAST = 1.02  # of the least time: what single operators repeat within
_FASTER = 0.98  # of the time of the layer: what counts as a gain


@dataclass
class RankPlan:
    """The ranks that a rule gives to layers.

    Args:
        rule: the rule.
        candidates: the layers that can be factorized.
        threads: number of threads of a measured operator.

    Attributes:
        ranks: name of each layer that becomes factors -> its ranks.
        why: name of each other layer -> why it is left as it is.
    """

    rule: RankRule
    candidates: Sequence[Candidate]
    threads: int = field(default_factory=torch.get_num_threads)
    ranks: dict[str, Ranks] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._times = CandidateTimes(self.threads)

    def decide(self, model: nn.Module, task: Task, run: Run, factorized: Callable[[Mapping[str, Ranks]], nn.Module]) -> None:
        """Fill `ranks` and `why`; what depends on measured times is recorded in the run, so that a repeated run is the same.

        Args:
            model: the model, for limits on its cost.
            task: gives its inputs.
            run: of the step.
            factorized: ranks of layers -> the model with these factors, for limits on latency.

        Raises:
            UserError: E110 if a rank is larger than every layer; E111 if a layer has several; E112 if a pattern matches no
                layer; E114 if a limit cannot be reached.
        """

        def found() -> str:
            if self.rule.for_each_layer:
                for candidate in self._of_enough_rank():
                    self._choose(candidate)
            else:
                budget = RankBudget(self.rule, self.candidates, self._times)
                self.ranks, self.why = budget.within_limits(model, task, factorized)
            if self.rule.keep == "faster":
                self._leave_what_is_not_faster()
            return json.dumps({"ranks": self.ranks, "why": self.why})

        decided = json.loads(run.decide("ranks", found) if self.rule.measures else found())
        self.ranks, self.why = {name: tuple(ranks) for name, ranks in decided["ranks"].items()}, decided["why"]

    def _of_enough_rank(self) -> Sequence[Candidate]:
        """The candidates; an error if the rank asked for is larger than each of them, or is for none of them."""
        names = [candidate.name for candidate in self.candidates]
        every_pattern_matches("ranks", tuple(self.rule.ranks or ()), names)
        rank, most = self.rule.rank, max(self.candidates, key=lambda candidate: max(candidate.full))
        if rank is not None and rank > max(most.full):
            message = f"rank = {rank} is larger than every matrix: the largest full rank is {max(most.full)} ({most.name})"
            raise UserError("E110", message, "lower `rank`", path=("rank",))
        return self.candidates

    def _choose(self, candidate: Candidate) -> None:
        """Find the ranks of a layer by the rule for each layer alone."""
        rule = self.rule
        if rule.ranks is not None:
            asked = self._named(candidate)
            if asked is None:
                self.why[candidate.name] = "not in `ranks`"
                return
            ranks = tuple(min(asked, full) for full in candidate.full)
        elif rule.rank is not None:
            ranks = tuple(min(rule.rank, full) for full in candidate.full)
        elif rule.ratio is not None:
            ranks = candidate.fraction(rule.ratio, rule.least_multiple)
        else:
            assert rule.energy is not None, "one of the three is given"
            ranks = candidate.keeping(rule.energy, rule.least_multiple)
        if not candidate.smaller(ranks):
            self.why[candidate.name] = candidate.why_not_smaller(ranks)
        else:
            self.ranks[candidate.name] = self._raised(candidate, ranks) if rule.multiple == "measured" else ranks

    def _named(self, candidate: Candidate) -> int | None:
        """The rank that `ranks` has for a layer; None if it has none.

        Raises:
            UserError: E111 if it has several.
        """
        given = {pattern: rank for pattern, rank in (self.rule.ranks or {}).items() if matches(candidate.name, (pattern,))}
        if len(set(given.values())) > 1:
            listed = ", ".join(f"{pattern} = {rank}" for pattern, rank in given.items())
            message = f"{candidate.name} has several ranks: {listed}"
            raise UserError("E111", message, "give one rank for each layer", path=("ranks",))
        return next(iter(given.values()), None)

    def _raised(self, candidate: Candidate, ranks: Ranks) -> Ranks:
        """The highest of the ranks rounded to 4, 8 and 16 whose factors take no longer than the fastest of them."""
        rounded = dict.fromkeys((ranks, *(candidate.rounded(ranks, multiple) for multiple in _MULTIPLES)))
        options = [option for option in rounded if candidate.smaller(option)]
        times = self._times([(candidate, option) for option in options])
        return max(option for option, time in zip(options, times, strict=True) if time <= _AS_FAST * min(times))

    def _leave_what_is_not_faster(self) -> None:
        factors = [(candidate, self.ranks[candidate.name]) for candidate in self.candidates if candidate.name in self.ranks]
        times = self._times([*factors, *((candidate, ()) for candidate, _ in factors)])
        for (candidate, ranks), own, dense in zip(factors, times[: len(factors)], times[len(factors) :], strict=True):
            if own > _FASTER * dense:
                del self.ranks[candidate.name]
                self.why[candidate.name] = (
                    f"factors of rank {shown(ranks)} are not faster: {own:.4f} ms, the layer {dense:.4f} ms "
                    f"(alone, batch {self.rule.batch}, threads: {self.threads})"
                )
