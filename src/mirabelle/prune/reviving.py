"""Pruning during a training in which pruned weights keep learning, and return where they become important again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mirabelle.model.architecture import architecture_of, attach
from mirabelle.prune.weight_masks import RemovedWeights, weights_to_prune
from mirabelle.scores import Evidence
from mirabelle.training.contracts import check_same_training

_HIDDEN, _KEPT, _SCORE = "_hidden", "_kept", "_score"  # buffers beside each pruned parameter during the training
_FADING = 0.01  # share of its value that a pruned weight loses at each step
_PRUNED, _FREE, _FOR_GOOD = 0, 1, 2  # what the second of them says


class RevivingMasks:
    """Sets weights to zero during a training, and lets them return (a `training.Control`).

    The model computes with w = m · v. The optimizer's change of w goes to v for all weights, also for those with m = 0, whose
    gradient is that at w = 0 (straight-through). These lose 1 % of v at each step, so that only those return whose gradients
    agree; without this, steps of Adam alone carried as many back as out. At the moments of the schedule, m is found anew from
    the scores of v. At its end v is left, and pruned weights stay zero. Scores that need the gradient are added up over the
    optimizer steps, with the gradient at w and the value of v.

    Weights that an earlier step pruned stay zero.

    Args:
        removed: the weights to prune, with a gradual schedule.
        model: the model in training, with the buffers of `with_hidden_weights`.
    """

    def __init__(self, removed: RemovedWeights, model: nn.Module) -> None:
        self._removed, self._model = removed, model
        self._names = [name for name, _ in model.named_parameters() if _has(model, name)]
        parameters = dict(model.named_parameters())
        self._deviations = [float(parameters[name].detach().std(correction=0)) for name in self._names]
        self._sums = "gradient" in removed.score.needs
        self._calls, self._last, self._finished = 0, 0.0, False

    def __call__(self, model: nn.Module, progress: float) -> bool:
        if self._finished:
            return False
        self._calls += 1
        schedule = self._removed.schedule
        self._learn(model)
        ends = self.settled(progress)
        if ends or schedule.due(self._calls, progress, self._last):
            self._last = progress
            self._choose(model, schedule.at(progress, self._removed.amount))
        self._apply(model)
        if ends:
            self._finished = True
            attach(model, architecture_of(model).with_pruned(self._names))
        return ends

    def settled(self, progress: float) -> bool:
        return progress >= self._removed.schedule.end

    def state_dict(self) -> dict[str, Any]:
        progress = {"calls": self._calls, "last": self._last, "finished": int(self._finished)}
        return {**progress, "deviations": self._deviations, "settings": {**self._removed.settings(), "revive": True}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_same_training(state.get("settings"), {**self._removed.settings(), "revive": True})
        self._calls, self._last, self._finished = state["calls"], state["last"], bool(state["finished"])
        self._deviations = list(state["deviations"])
        if self._finished:
            attach(self._model, architecture_of(self._model).with_pruned(self._names))

    @torch.no_grad()
    def _learn(self, model: nn.Module) -> None:
        """Take the change of the optimizer step into the hidden weights, and add up scores."""
        parameters = dict(model.named_parameters())
        for name in self._names:
            hidden, kept = _buffer(model, name, _HIDDEN), _buffer(model, name, _KEPT)
            parameter = parameters[name]
            if self._sums and parameter.grad is not None:
                _buffer(model, name, _SCORE).add_(self._removed.score(hidden, Evidence(name, gradient=parameter.grad)))
            learned = torch.where(kept == _FREE, parameter, (1 - _FADING) * hidden + parameter)
            hidden.copy_(torch.where(kept == _FOR_GOOD, 0.0, learned))

    @torch.no_grad()
    def _choose(self, model: nn.Module, amount: float) -> None:
        scores = [self._scored(model, name) for name in self._names]
        for name, mask in zip(self._names, self._removed.masks(scores, amount, self._deviations), strict=True):
            kept = _buffer(model, name, _KEPT)
            kept.copy_(torch.where(kept == _FOR_GOOD, _FOR_GOOD, torch.where(mask, _FREE, _PRUNED)))

    def _scored(self, model: nn.Module, name: str) -> Tensor:
        hidden, kept = _buffer(model, name, _HIDDEN), _buffer(model, name, _KEPT)
        found = _buffer(model, name, _SCORE) if self._sums else self._removed.score(hidden, Evidence(name))
        least = 0.0 if self._removed.block else -math.inf  # in a block, the weights that are left count
        return torch.where(kept == _FOR_GOOD, least, found)

    @torch.no_grad()
    def _apply(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        for name in self._names:
            hidden, free = _buffer(model, name, _HIDDEN), _buffer(model, name, _KEPT) == _FREE
            parameters[name].copy_(torch.where(free, hidden, 0.0))


def with_hidden_weights(model: nn.Module, removed: RemovedWeights) -> nn.Module:
    """Give each weight that is to be pruned its buffers, in place; weights that are pruned already are marked."""
    architecture = architecture_of(model)
    chosen = weights_to_prune(removed, model)
    for name, parameter in chosen.items():
        module, key = _owner(model, name)
        known = name in architecture.pruned
        kept = torch.where((parameter.detach() != 0) | (not known), _FREE, _FOR_GOOD).to(torch.uint8)
        module.register_buffer(f"{key}{_HIDDEN}", parameter.detach().clone())
        module.register_buffer(f"{key}{_KEPT}", kept)
        if "gradient" in removed.score.needs:
            module.register_buffer(f"{key}{_SCORE}", torch.zeros_like(parameter.detach()))
    attach(model, architecture.without_pruned(list(chosen)))  # zeros are kept by the control until it ends
    return model


def without_hidden_weights(model: nn.Module) -> nn.Module:
    """Remove the buffers, in place."""
    for name, _ in list(model.named_parameters()):
        module, key = _owner(model, name)
        for kind in (_HIDDEN, _KEPT, _SCORE):
            module._buffers.pop(f"{key}{kind}", None)
    return model


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    place, _, key = name.rpartition(".")
    return model.get_submodule(place), key


def _has(model: nn.Module, name: str) -> bool:
    module, key = _owner(model, name)
    return f"{key}{_HIDDEN}" in module._buffers


def _buffer(model: nn.Module, name: str, kind: str) -> Tensor:
    module, key = _owner(model, name)
    found = module._buffers[f"{key}{kind}"]
    assert found is not None, "with_hidden_weights has made it"
    return found
