"""Which units of each group go first, and what their loss is thought to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mirabelle.calibration.samples import CalibrationSamples
from mirabelle.graph.flow import Flow
from mirabelle.graph.groups import AxisGroup, sums_over_units
from mirabelle.graph.trace import Program
from mirabelle.graph.units import Array
from mirabelle.prune.structured_obs import Removal, structured_obs
from mirabelle.scores import Hessian, Score
from mirabelle.scores.evidence import evidence_for
from mirabelle.scores.score import covered
from mirabelle.task.task import Task

Numbers = npt.NDArray[np.float64]
_LEAST_SHARE = 1e-9  # of what stays, so that a whole layer has a damage, though a huge one


@dataclass(frozen=True)
class Ranking:
    """The units of one group.

    Args:
        units: the first to go first; none where the score does not speak of the group.
        scores: of the units, rising.
        damage: (units + 1,), after the first 0, 1, … have gone.
    """

    units: Array
    scores: Numbers
    damage: Numbers


def ranked(
    score: Score, model: nn.Module, task: Task, groups: Sequence[AxisGroup], *, program: Program, flow: Flow, seed: int
) -> list[Ranking | None]:
    """Every group's units by a score; None for a group that takes no tensor with it of which the score speaks.

    The damage of a group whose share p of squared scores stays is −n · ln p, n the weights of two or more dimensions that it
    narrows: over groups and layers it adds up to −ln of a product of shares, so that no layer is emptied while others stay
    whole. With the Hessian score units go as `structured_obs` says, and p is the share of its readers' outputs that is kept.

    Args:
        score: what matters least.
        model: as it was traced.
        task: whose training data the score may look at.
        groups: of the flow.
        program: of the model.
        flow: of the program.
        seed: of the samples that are drawn.
    """
    removals: list[Removal | None] = [None] * len(groups)
    if isinstance(score, Hessian):
        drawn = CalibrationSamples.drawn(task.train, score.samples, seed)
        removals = structured_obs(model, program, flow, groups, drawn, ridge=score.damping)
    found = [None if removal is None else _by_removal(removal) for removal in removals]
    if all(found):
        return found
    names = {name for name in covered(score, model) if name in program.tensors}
    sums = [_sums(score, model, task, program, flow, part=part, seed=seed) for part in range(score.parts)]
    for place, group in enumerate(groups):
        if found[place] is None and any(member.name in names for member in group.members):
            scores = np.mean([score.unit(own[group.units]) for own in sums], axis=0)
            weights = len({member.name for member in group.members if program.tensors[member.name].ndim > 1})
            found[place] = _by_score(group, scores, max(weights, 1))
    return found


def _sums(score: Score, model: nn.Module, task: Task, program: Program, flow: Flow, *, part: int, seed: int) -> Numbers:
    """For each unit, what the weights that it takes with it contribute."""
    evidence = evidence_for(score, model, task, part=part, seed=seed)
    with torch.no_grad():
        added = {
            name: score.contributions(program.tensors[name].detach(), known)
            for name, known in evidence.items()
            if name in program.tensors
        }
    return sums_over_units(program, flow, added)


def _by_score(group: AxisGroup, scores: Numbers, weights: int) -> Ranking:
    order = np.argsort(scores, kind="stable")
    rising = scores[order]
    gone = np.concatenate([np.zeros(1), np.cumsum(np.square(rising))])
    return Ranking(group.units[order], rising, weights * _minus_log(1.0 - gone / max(float(gone[-1]), 1e-30)))


def _by_removal(removal: Removal) -> Ranking:
    readers = len(removal.readers)
    steps = np.maximum.accumulate(np.diff(removal.damage))
    return Ranking(removal.order, steps, 2 * readers * _minus_log(1.0 - removal.damage / readers))


def _minus_log(shares: Numbers) -> Numbers:
    return np.asarray(-np.log(np.clip(shares, _LEAST_SHARE, 1.0)))
