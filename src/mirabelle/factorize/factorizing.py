"""What the steps of the family share: choose layers and ranks, put factors in their places, tell what was left alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from mirabelle.records.record import Patterns
from mirabelle.step import Preview, Stage
from mirabelle.training import Training
from mirabelle.training.contracts import Prepared

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.factorize.candidate import Candidate, Ranks
    from mirabelle.factorize.rank_plan import RankPlan
    from mirabelle.run.run import Run
    from mirabelle.task.task import Task


class Factorizes(ABC):
    """A step that replaces layers by factors of low rank, and may train the result."""

    stage: ClassVar[Stage] = "factorize"
    include: Patterns
    exclude: Patterns
    train: Training | None

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        from mirabelle.training import train_together

        if self.train is not None:
            return train_together((self,), self.train, model, task, run)
        return self.prepare(model, task, run).model

    def prepare(self, model: nn.Module, task: Task, run: Run) -> Prepared:
        from mirabelle.model.plain_weights import with_plain_weights

        model = with_plain_weights(model, run)
        smaller, sentences = self._factorized(model, task, run)
        for sentence in sentences:
            run.event("note", text=sentence)
        return Prepared(smaller)

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        from mirabelle.model.plain_weights import with_plain_weights

        smaller, sentences = self._factorized(with_plain_weights(model), task, run)
        return Preview(smaller, sentences, self.train)

    @abstractmethod
    def kinds(self) -> tuple[type[nn.Module], ...]:
        """The classes of layers that the step factorizes."""

    def opened(self, model: nn.Module, include: tuple[str, ...], exclude: tuple[str, ...]) -> nn.Module:
        """The model in a form that calls the layers that match; by default the model itself."""
        del include, exclude
        return model

    def candidates(self, model: nn.Module, task: Task, run: Run) -> list[Candidate]:
        """The layers that can be factorized, for a planner: what each rank loses and costs.

        Raises:
            UserError: as the step.
        """
        from mirabelle.factorize.layer_choice import layers_for

        opened = self.opened(model, self.include, self.exclude)
        layers, _ = layers_for(opened, self.kinds(), self.include, self.exclude)
        return self._candidates(opened, layers, task, run)[0]

    @abstractmethod
    def _candidates(
        self, model: nn.Module, layers: Mapping[str, nn.Module], task: Task, run: Run
    ) -> tuple[list[Candidate], dict[str, str]]:
        """The layers that can be factorized, and the others with the reasons why not."""

    def _factorized(self, model: nn.Module, task: Task, run: Run) -> tuple[nn.Module, tuple[str, ...]]:
        from mirabelle.factorize.layer_choice import layers_for, why_left
        from mirabelle.factorize.rank_plan import RankPlan
        from mirabelle.factorize.rank_rule import RankRule
        from mirabelle.model.left_alone import tell_left_alone

        opened = self.opened(model, self.include, self.exclude)
        layers, why = layers_for(opened, self.kinds(), self.include, self.exclude)
        candidates, refused = self._candidates(opened, layers, task, run)
        plan = RankPlan(RankRule.of(self), candidates)
        if candidates:
            plan.decide(opened, task, run, lambda ranks: with_factors(opened, candidates, ranks))
        kept = self.opened(model, tuple(plan.ranks), ()) if plan.ranks else model  # open only what has factors
        smaller = with_factors(kept, candidates, plan.ranks)
        known = {**why, **refused, **plan.why}
        closed = {name.rpartition(".")[0]: f"{name}: {reason}" for name, reason in known.items() if not _has(smaller, name)}
        reasons = why_left(smaller, self.kinds(), self.include, self.exclude, {**known, **closed})
        told = _sentences(candidates, plan)
        return smaller, (*told, *tell_left_alone(run, smaller, task.example(), reasons))


def with_factors(model: nn.Module, candidates: Sequence[Candidate], ranks: Mapping[str, Ranks]) -> nn.Module:
    """A copy of a model with factors in the places of layers.

    Args:
        model: is not changed.
        candidates: the layers.
        ranks: name of a layer -> ranks of its factors; layers without ranks stay.
    """
    from mirabelle.model.architecture import replace_module
    from mirabelle.model.state import copied

    model = copied(model)
    for candidate in candidates:
        if candidate.name in ranks:
            model = replace_module(model, candidate.name, candidate.made(ranks[candidate.name]))
    return model


def _has(model: nn.Module, name: str) -> bool:
    return name in dict(model.named_modules())


def _sentences(candidates: Sequence[Candidate], plan: RankPlan) -> tuple[str, ...]:
    from mirabelle.factorize.candidate import shown

    found = []
    for candidate in candidates:
        ranks = plan.ranks.get(candidate.name)
        if ranks is None:
            continue
        own, dense = candidate.cost(ranks), candidate.cost(())
        kept = f"{'at least ' * (len(ranks) > 1)}{1.0 - candidate.share_lost(ranks):.2%}"
        found.append(
            f"{candidate.name or 'the model'}: rank {shown(ranks)} of {shown(candidate.full)} keeps {kept} of the squared "
            f"norm; {own.parameters:,} weights instead of {dense.parameters:,}, {own.macs:,} MACs instead of {dense.macs:,}"
        )
    return tuple(found) or ("no layer is factorized: no factors pay here",)
