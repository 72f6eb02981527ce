"""Unstructured pruning: sets single weights to zero, gradually while a model is trained or all at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mirabelle.model.architecture import architecture_of, attach
from mirabelle.numerics.masks import (
    keep_above,
    keep_by_erdos_renyi,
    keep_highest,
    keep_highest_of_each,
    keep_highest_together,
    lamp,
)
from mirabelle.records.patterns import any_matches, names_of_parameters, selected
from mirabelle.records.record import to_data
from mirabelle.records.schedules import Gradual
from mirabelle.scores import Evidence
from mirabelle.scores.score import Score, covered
from mirabelle.training.contracts import check_same_training


@dataclass(frozen=True)
class RemovedWeights:
    """The weights to prune: parameters, score, amount and schedule.

    Args:
        rule: meaning of `amount`. "sparsity": fraction of the weights to prune, those of lowest score; "threshold": weights
            with scores up to this value are pruned; "quality": the threshold as a multiple of the standard deviation of the
            weight's tensor; "pattern": the fraction that `of_each` prunes.
        amount: at the end of the schedule.
        score: importance of weights.
        schedule: growth of the amount during a training.
        include: patterns of parameter names; by default the parameters to which the score applies.
        exclude: patterns of names of parameters that are not pruned.
        together: rank the weights of all tensors together (for a sparsity).
        floor: least share that a tensor keeps of what an equal sparsity would leave it, if they are ranked together.
        budget: how a sparsity is divided among the tensors unless they are ranked together: "" each the same, "erk" by their
            sizes, "lamp" by the ranking of `masks.lamp`.
        of_each: for a pattern, (kept, weights): so many of each group of that many neighbouring weights of a row are kept.
    """

    rule: Literal["sparsity", "threshold", "quality", "pattern"]
    amount: float
    score: Score
    schedule: Gradual
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    together: bool = False
    floor: float = 0.0
    of_each: tuple[int, int] | None = None
    budget: Literal["", "erk", "lamp"] = ""


def weights_to_prune(removed: RemovedWeights, model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters to prune, by name.

    Raises:
        UserError: E112 if a pattern matches nothing, or no parameter is selected.
    """
    chosen = selected(model, removed.include, removed.exclude, by_default=covered(removed.score, model))
    return {name: parameter for name, parameter in chosen.items() if _why_not_ranked(parameter) is None}


def _why_not_ranked(parameter: Tensor) -> str | None:
    """Why the values of a parameter, such as a newly initialized bias or the mask of an attention, cannot be ranked."""
    if not bool(parameter.any()):
        return "all its numbers are zero"
    return None if bool(parameter.isfinite().all()) else "it has infinite numbers, as a mask has"


def why_not_pruned(removed: RemovedWeights, model: nn.Module) -> dict[str, str]:
    """Name of each parameter with two or more dimensions that is not pruned -> why."""
    chosen, names = weights_to_prune(removed, model), names_of_parameters(model)
    reasons: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        if name in chosen or parameter.dim() < 2:  # noqa: PLR2004 (biases and norms)
            continue
        if any_matches(names[name], removed.exclude):
            reasons[name] = "excluded"
        elif removed.include and not any_matches(names[name], removed.include):
            reasons[name] = "not in `include`"
        else:
            own = _why_not_ranked(parameter)
            reasons[name] = own or f"the score {type(removed.score).__name__} does not apply to it"
    return reasons


class WeightMasks:
    """Sets weights to zero during a training, following a schedule (a `training.Control`).

    Args:
        removed: the weights to prune.
        model: the model to prune.
        evidence: for scores that need data: the evidence of each parameter in `weights_to_prune`.
    """

    def __init__(self, removed: RemovedWeights, model: nn.Module, evidence: Mapping[str, Evidence] | None = None) -> None:
        self._removed = removed
        self._model = model
        self._evidence = evidence or {}
        chosen = weights_to_prune(removed, model)
        self._names = list(chosen)
        self._deviations = {name: float(chosen[name].detach().std(correction=0)) for name in self._names}
        self._calls = 0
        self._last = 0.0
        self._prunings = 0
        self._finished = False

    def __call__(self, model: nn.Module, progress: float) -> bool:
        self._calls += 1
        schedule = self._removed.schedule
        first_at_final = self.settled(progress) and not self._finished
        if not (first_at_final or schedule.due(self._calls, progress, self._last)):
            return False
        self._last = progress
        self._finished = self.settled(progress)
        self.prune(model, schedule.at(progress, self._removed.amount))
        return True

    def settled(self, progress: float) -> bool:
        return progress >= self._removed.schedule.end

    @torch.no_grad()
    def prune(self, model: nn.Module, amount: float) -> None:
        """Set the weights of lowest score to zero, and record their tensors as pruned."""
        parameters = dict(model.named_parameters())
        evidence = [self._evidence.get(name, Evidence(name)) for name in self._names]
        scores = [self._removed.score(parameters[own.name], own) for own in evidence]
        for name, mask in zip(self._names, self._masks(scores, amount), strict=True):
            parameters[name].mul_(mask)
        attach(model, architecture_of(model).with_pruned(self._names))
        self._prunings += 1

    def state_dict(self) -> dict[str, Any]:
        progress = {"calls": self._calls, "last": self._last, "prunings": self._prunings, "finished": int(self._finished)}
        return {**progress, "settings": self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_same_training(state.get("settings"), self._settings())
        self._calls, self._last = state["calls"], state["last"]
        self._prunings, self._finished = state["prunings"], bool(state["finished"])
        if self._prunings:
            attach(self._model, architecture_of(self._model).with_pruned(self._names))

    def _settings(self) -> dict[str, Any]:
        settings = {
            field.name: to_data(getattr(self._removed, field.name)) for field in fields(RemovedWeights) if field.name != "score"
        }
        if not self._removed.budget:
            settings.pop("budget")  # which checkpoints of earlier versions lack
        return {**settings, "score": type(self._removed.score).__name__}

    def _masks(self, scores: list[Tensor], amount: float) -> list[Tensor]:
        if self._removed.of_each is not None:
            return [keep_highest_of_each(score.flatten(1), *self._removed.of_each).reshape(score.shape) for score in scores]
        if self._removed.rule == "threshold":
            return [keep_above(score, amount) for score in scores]
        if self._removed.rule == "quality":
            pairs = zip(self._names, scores, strict=True)
            return [keep_above(score, amount * self._deviations[name]) for name, score in pairs]
        return self._divided(scores, amount)

    def _divided(self, scores: list[Tensor], sparsity: float) -> list[Tensor]:
        """The masks of a sparsity that is divided among the tensors."""
        if self._removed.together:
            return keep_highest_together(scores, sparsity, self._removed.floor)
        if self._removed.budget == "erk":
            return keep_by_erdos_renyi(scores, sparsity)
        if self._removed.budget == "lamp":
            return keep_highest_together([lamp(score) for score in scores], sparsity)
        return [keep_highest(score, sparsity) for score in scores]
