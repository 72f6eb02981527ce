"""Unstructured pruning: sets single weights to zero, gradually while a model is trained or all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mirabelle.model.architecture import architecture_of, attach
from mirabelle.numerics.masks import (
    blocks,
    keep_above,
    keep_by_erdos_renyi,
    keep_highest,
    keep_highest_of_each,
    keep_highest_together,
    lamp,
    of_blocks,
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
        block: (rows, columns) of the blocks that are kept or pruned as a whole; None for single weights.
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
    block: tuple[int, int] | None = None

    def masks(self, scores: Sequence[Tensor], amount: float, deviations: Sequence[float]) -> list[Tensor]:
        """The mask of each tensor, False for the weights to prune.

        Args:
            scores: of each tensor, of its shape.
            amount: as at a moment of the schedule.
            deviations: standard deviation of each tensor before pruning.
        """
        if self.of_each is not None:
            return [keep_highest_of_each(score.flatten(1), *self.of_each).reshape(score.shape) for score in scores]
        if self.rule == "threshold":
            return [keep_above(score, amount) for score in scores]
        if self.rule == "quality":
            return [keep_above(score, amount * deviation) for score, deviation in zip(scores, deviations, strict=True)]
        if self.block is None:
            return self._divided(scores, amount)
        kept = self._divided([blocks(score.reshape(len(score), -1), self.block) for score in scores], amount)
        return [of_blocks(mask, self.block, score.shape) for mask, score in zip(kept, scores, strict=True)]

    def _divided(self, scores: Sequence[Tensor], sparsity: float) -> list[Tensor]:
        """The masks of a sparsity that is divided among the tensors."""
        if self.together:
            return keep_highest_together(scores, sparsity, self.floor)
        if self.budget == "erk":
            return keep_by_erdos_renyi(scores, sparsity)
        if self.budget == "lamp":
            return keep_highest_together([lamp(score) for score in scores], sparsity)
        return [keep_highest(score, sparsity) for score in scores]

    def settings(self) -> dict[str, Any]:
        """As plain data, by which a checkpoint is compared with the training that is to go on."""
        settings = {field.name: to_data(getattr(self, field.name)) for field in fields(self) if field.name != "score"}
        for added in ("budget", "block"):  # which checkpoints of earlier versions lack
            if not settings[added]:
                settings.pop(added)
        return {**settings, "score": type(self.score).__name__}


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
        evidence = [self._evidence.get(name, Evidence(name)).to(parameters[name].device) for name in self._names]
        before = set(architecture_of(model).pruned)
        scores = [
            self._lowest_where_pruned(self._removed.score(parameters[own.name], own), parameters[own.name])
            if own.name in before
            else self._removed.score(parameters[own.name], own)
            for own in evidence
        ]
        masks = self._removed.masks(scores, amount, [self._deviations[name] for name in self._names])
        for name, mask in zip(self._names, masks, strict=True):
            parameters[name].mul_(mask).add_(0.0)  # −0.0 becomes 0.0
        attach(model, architecture_of(model).with_pruned(self._names))
        self._prunings += 1

    def _lowest_where_pruned(self, scores: Tensor, parameter: Tensor) -> Tensor:
        """Scores in which weights that an earlier step has pruned are lowest, also if others have scores below 0."""
        if not bool((scores < 0).any()):
            return scores
        lowest = scores.min() if self._removed.block else -torch.inf  # a block is not lost for one pruned weight
        return torch.where(parameter == 0, lowest, scores)

    def state_dict(self) -> dict[str, Any]:
        progress = {"calls": self._calls, "last": self._last, "prunings": self._prunings, "finished": int(self._finished)}
        return {**progress, "settings": self._removed.settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_same_training(state.get("settings"), self._removed.settings())
        self._calls, self._last = state["calls"], state["last"]
        self._prunings, self._finished = state["prunings"], bool(state["finished"])
        if self._prunings:
            attach(self._model, architecture_of(self._model).with_pruned(self._names))
