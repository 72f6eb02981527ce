"""Rank the units of each group by a score, and estimate the damage of removing them."""

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
_LEAST_SHARE = 1e-9  # lower limit of a kept share, so that the damage of removing a whole layer is finite


@dataclass(frozen=True)
class Ranking:
    """The units of one group in the order in which they are removed.

    Args:
        units: (n,), in the order of removal.
        scores: (n,), scores of the units, in increasing order.
        damage: (n + 1,), damage of removing the first 0, 1, …, n units.
    """

    units: Array
    scores: Numbers
    damage: Numbers


def ranked(
    score: Score, model: nn.Module, task: Task, groups: Sequence[AxisGroup], *, program: Program, flow: Flow, seed: int
) -> list[Ranking | None]:
    """Rank the units of each group by a score.

    If a group keeps a share p of its squared scores, its damage is −n · ln p, where n is the number of weights with two or more
    dimensions that the group narrows. The sum over all groups is −ln of a product of shares, so that no layer is emptied while
    others keep all units. With the Hessian score, units are removed in the order of `structured_obs`, and p is the share of the
    outputs of the layers using them that is kept.

    Args:
        score: importance of weights.
        model: the traced model.
        task: provides training data for scores that need data.
        groups: of the flow.
        program: traced program of the model.
        flow: of the program.
        seed: of the drawn samples.

    Returns:
        A ranking per group; None for a group without a tensor to which the score applies.
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
    """For each unit, the sum of the contributions of all weights that are removed with it."""
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
