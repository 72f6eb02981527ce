"""The control that removes single weights while a model trains, or at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mirabelle.model.architecture import architecture_of, attach
from mirabelle.numerics.masks import keep_above, keep_highest, keep_highest_together
from mirabelle.records.patterns import selected
from mirabelle.records.schedules import Gradual
from mirabelle.scores import Evidence
from mirabelle.scores.score import covered

if TYPE_CHECKING:
    from mirabelle.prune.weights import Weights


def weights_to_prune(step: Weights, model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a step ranks, by name.

    Raises:
        UserError: E112 a pattern that matches nothing, or nothing left.
    """
    chosen = selected(model, step.targets, step.ignore, by_default=covered(step.score, model))
    # A tensor of zeros alone, such as a fresh bias, has nothing to rank: it trains as ever.
    return {name: parameter for name, parameter in chosen.items() if bool(parameter.any())}


class Pruning:
    """The control that removes weights as its step asks, more and more as the training progresses.

    Args:
        step: what is asked for.
        model: to be pruned.
        evidence: for scores that need any, of every parameter in `weights_to_prune`.
    """

    def __init__(self, step: Weights, model: nn.Module, evidence: Mapping[str, Evidence] | None = None) -> None:
        self._step = step
        self._model = model
        self._evidence = evidence or {}
        self._schedule = Gradual.named("constant") if step.schedule == "one-shot" else Gradual.of(step.schedule)
        chosen = weights_to_prune(step, model)
        self._names = list(chosen)
        self._deviations = {name: float(chosen[name].detach().std(correction=0)) for name in self._names}
        self._calls = 0
        self._last = 0.0
        self._prunings = 0
        self._finished = False

    def __call__(self, model: nn.Module, progress: float) -> bool:
        self._calls += 1
        schedule = self._schedule
        first_at_final = self.settled(progress) and not self._finished
        if not (first_at_final or schedule.due(self._calls, progress, self._last)):
            return False
        self._last = progress
        self._finished = self.settled(progress)
        self.prune(model, schedule.at(progress, self._step.amount))
        return True

    def settled(self, progress: float) -> bool:
        return progress >= self._schedule.end

    @torch.no_grad()
    def prune(self, model: nn.Module, amount: float) -> None:
        """Zero the weights of lowest score and record their tensors as pruned."""
        parameters = dict(model.named_parameters())
        evidence = [self._evidence.get(name, Evidence(name)) for name in self._names]
        scores = [self._step.score(parameters[own.name], own) for own in evidence]
        for name, mask in zip(self._names, self._masks(scores, amount), strict=True):
            parameters[name].mul_(mask)
        attach(model, architecture_of(model).with_pruned(self._names))
        self._prunings += 1

    def state_dict(self) -> dict[str, int | float]:
        return {"calls": self._calls, "last": self._last, "prunings": self._prunings, "finished": int(self._finished)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._calls, self._last = state["calls"], state["last"]
        self._prunings, self._finished = state["prunings"], bool(state["finished"])
        if self._prunings:
            attach(self._model, architecture_of(self._model).with_pruned(self._names))

    def _masks(self, scores: list[Tensor], amount: float) -> list[Tensor]:
        step = self._step
        if step.threshold is not None:
            return [keep_above(score, amount) for score in scores]
        if step.quality is not None:
            pairs = zip(self._names, scores, strict=True)
            return [keep_above(score, amount * self._deviations[name]) for name, score in pairs]
        if step.scope == "global":
            return keep_highest_together(scores, amount)
        return [keep_highest(score, amount) for score in scores]
