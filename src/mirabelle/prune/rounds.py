"""Iterative pruning: a sparsity in several rounds, each followed by a training, with rewinding."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of, attach
from mirabelle.model.state import copied, fingerprint, load_tensors, tensors_of_module
from mirabelle.training.checkpoint import CHECKPOINT, Checkpoint, remove_checkpoints, seconds_in
from mirabelle.training.contracts import check_same_training
from mirabelle.training.loop import fit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from mirabelle.run.run import Run
    from mirabelle.task.task import Task
    from mirabelle.training import Training


def sparsity_of_round(sparsity: float, place: int, rounds: int) -> float:
    """The sparsity after some of the rounds, each of which prunes the same share of the weights that are left.

    s_k = 1 − (1 − s)^(k / n)

    Args:
        sparsity: s, after all rounds.
        place: k, from 0 to n.
        rounds: n.

    Example:
        >>> sparsity_of_round(0.75, 1, 2)
        0.5
    """
    return float(1 - (1 - sparsity) ** (place / rounds))


def number_of_trainings(rounds: int, rewind: str) -> int:
    """One for each round; if weights are rewound, also one before the first."""
    return rounds + (rewind == "weights")


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Rounds of pruning and training.

    Args:
        sparsity: after all rounds.
        count: of the rounds.
        rewind: "learning-rate": each training begins with the weights that the one before has left; "weights": with the given
            weights, of which those that are pruned are 0, after a training of the given model as a whole.
        pruned: (model, sparsity, part of the run) -> a pruned copy.
        training: of each round.
        settings: of the step, as plain data, by which what an earlier process has begun is compared.
    """

    sparsity: float
    count: int
    rewind: str
    pruned: Callable[[nn.Module, float, Run], nn.Module]
    training: Training
    settings: Mapping[str, Any]

    def __call__(self, given: nn.Module, task: Task, run: Run) -> nn.Module:
        """The model after the last round; a continued run goes on with the round in which it was stopped."""
        trainings = number_of_trainings(self.count, self.rewind)
        settings = {**self.settings, "given": fingerprint(given)}
        begun = [place for place in range(trainings) if _beginning(run, place).path.is_file()]
        model, first = given, max(begun, default=0)  # the model that was trained last
        for place in range(first, trainings):
            part, beginning = run.within(_name(place)), _beginning(run, place)
            if place not in begun:
                self._keep(self._begun(given, model, place, part), place, run, settings)
            beginning_with = _taken_up(given, beginning, settings)  # also now, so that a continued run goes on with the same
            told = run.event("round", round=place + 1, rounds=trainings, sparsity=self._sparsity(place))
            trained = model if place > first else beginning_with if self.rewind == "learning-rate" else None
            if told is not None and trained is not None:  # a callback asks to stop; rewound weights are trained first
                return self.pruned(trained, self.sparsity, part)
            model = fit(beginning_with, task, self.training, part)
        return model

    def _sparsity(self, place: int) -> float:
        """With which a training begins."""
        return sparsity_of_round(self.sparsity, place + (self.rewind == "learning-rate"), self.count)

    def _begun(self, given: nn.Module, model: nn.Module, place: int, part: Run) -> nn.Module:
        """The model with which a round begins, after the one that the round before has left."""
        if self.rewind == "weights" and not place:
            return model
        pruned = self.pruned(model, self._sparsity(place), part)
        return _rewound(given, pruned) if self.rewind == "weights" else pruned

    def _keep(self, model: nn.Module, place: int, run: Run, settings: Mapping[str, Any]) -> None:
        """Keep the model with which a round begins, and then nothing else of the rounds before."""
        earlier, pruned = [_name(before) for before in range(place)], list(architecture_of(model).pruned)
        numbers = {"seconds": seconds_in(run.folder), "instead_of": earlier, "pruned": pruned, "settings": settings}
        _beginning(run, place).write({"model": tensors_of_module(model)}, numbers)
        for folder in (run.folder / name for name in earlier):
            remove_checkpoints(folder)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _name(place: int) -> str:
    return f"round-{place + 1}"


def _beginning(run: Run, place: int) -> Checkpoint:
    """The weights with which a round begins."""
    return Checkpoint(run.folder / _name(place) / "beginning" / CHECKPOINT)


def _taken_up(given: nn.Module, beginning: Checkpoint, settings: Mapping[str, Any]) -> nn.Module:
    """The model with which a round begins.

    Raises:
        UserError: E141 if its file is damaged; E150 if it is of another step or model.
    """
    try:
        written = beginning.read()
    except UserError as error:
        folder = beginning.path.parents[1]
        raise UserError("E141", error.message, f"remove {folder} to begin with an earlier round") from error
    assert written is not None, "it is there"
    tensors, numbers = written
    check_same_training(numbers.get("settings"), settings)
    model = copied(given)
    load_tensors(model, tensors["model"], source=str(beginning.path))
    attach(model, architecture_of(model).with_pruned(numbers["pruned"]))
    return model


@torch.no_grad()
def _rewound(given: nn.Module, pruned: nn.Module) -> nn.Module:
    """The given model, where what is pruned is zero."""
    names = architecture_of(pruned).pruned
    zeros = {name: parameter != 0 for name, parameter in pruned.named_parameters() if name in names}
    model = copied(given)
    for name, parameter in model.named_parameters():
        if name in zeros:
            parameter.mul_(zeros[name]).add_(0.0)  # −0.0 becomes 0.0
    attach(model, architecture_of(model).with_pruned(names))
    return model
