"""Which units of a model go, and the cut."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from mirabelle.architecture import architecture_of
from mirabelle.batch import arguments_of
from mirabelle.errors import UserError
from mirabelle.graph.groups import groups_of, sums_over_units
from mirabelle.graph.interpret import kept_without
from mirabelle.graph.propagate import propagated
from mirabelle.graph.surgery import cut
from mirabelle.graph.trace import traced
from mirabelle.graph.units import Array
from mirabelle.patterns import every_pattern_matches, matches
from mirabelle.scores import Evidence
from mirabelle.task import Task

if TYPE_CHECKING:
    from mirabelle.prune.channels import Channels


class Cutting:
    """The groups of a model at hand, and what a step removes of them.

    Args:
        step: what is asked for.
        model: to be cut; it stays as it is.
        task: gives the example inputs of the trace.

    Raises:
        UserError: as `prune.Channels`.
    """

    def __init__(self, step: Channels, model: nn.Module, task: Task) -> None:
        names = [name for name, _ in model.named_parameters()]
        every_pattern_matches("ignore", step.ignore, names)
        self._step, self._model = step, model
        self._example = arguments_of(task.example().inputs)
        self._program = traced(model, *self._example)
        self._flow = propagated(self._program)
        found = groups_of(self._program, self._flow)
        self.groups = [group for group in found if not any(matches(member.name, step.ignore) for member in group.members)]
        if not self.groups:
            unknown = ", ".join(self._flow.unknown)
            why = f"operators that are not understood hold them: {unknown}" if unknown else "`ignore` or the model leaves none"
            raise UserError("E112", f"no channel, neuron or head can be cut: {why}", "shorten `ignore`, or use prune.Weights")
        self.removed = self._removed()

    def cut(self) -> nn.Module:
        """The smaller model."""
        gone = np.concatenate([np.zeros(0, np.int64), *self.removed])
        return cut(self._model, self._program, self._flow, kept_without(self._flow, gone), self._example)

    def says(self, smaller: nn.Module) -> Iterator[str]:
        """What goes, group by group, and what stands for the model afterwards."""
        total, gone = sum(map(len, self.groups)), sum(map(len, self.removed))
        yield f"{gone:,} of {total:,} units in {len(self.groups)} groups are cut"
        for group, units in zip(self.groups, self.removed, strict=True):
            yield f"{group.name}: {len(group)} become {len(group) - len(units)} ({len(group.members)} dimensions of tensors)"
        if self._flow.unknown:
            yield f"stays because an operator is not understood: {', '.join(self._flow.unknown)}"
        why = architecture_of(smaller).program.get("why")
        if why:
            yield f"the module's code does not follow ({why}): its rewritten program stands for it, as in eval mode"

    def _removed(self) -> list[Array]:
        """For each group, the units of lowest score."""
        scores = self._scores()
        counts = [self._left(len(group), math.floor(self._step.sparsity * len(group))) for group in self.groups]
        if self._step.scope == "global":
            counts = self._left_by_rank(scores)
        counts = self._made_equal(counts)
        return [
            group.units[np.argsort(score, kind="stable")[: len(group) - count]]
            for group, score, count in zip(self.groups, scores, counts, strict=True)
        ]

    @torch.no_grad()
    def _scores(self) -> list[Array]:
        """√Σ s² of each unit, group by group."""
        squares = {}
        for name, tensor in self._program.tensors.items():
            if isinstance(tensor, nn.Parameter) and tensor.ndim > 1:
                squares[name] = self._step.score(tensor, Evidence(name)).double().square()
        sums = sums_over_units(self._program, self._flow, squares)
        return [np.sqrt(sums[group.units]) for group in self.groups]

    def _left_by_rank(self, scores: list[Array]) -> list[int]:
        """How many units each group keeps when all are ranked together."""
        relative = [score / max(float(score.mean()), 1e-30) for score in scores]
        ranked = np.sort(np.concatenate(relative), kind="stable")
        gone = math.floor(self._step.sparsity * len(ranked))
        threshold = ranked[gone - 1] if gone else -math.inf
        return [self._left(len(score), int((score <= threshold).sum())) for score in relative]

    def _left(self, size: int, gone: int) -> int:
        """What stays of a group, rounded up."""
        rounded = math.ceil((size - gone) / self._step.multiple) * self._step.multiple
        return min(size, max(self._step.minimum, rounded, 1))

    def _made_equal(self, counts: list[int]) -> list[int]:
        """Groups that must keep equally many keep what the most needful does."""
        found = list(counts)
        for axes in self._flow.equal:
            units = [set(np.unique(rows).tolist()) for axis in axes if (rows := self._flow.units.resolve(axis)) is not None]
            tied = [k for k, group in enumerate(self.groups) if any(set(group.units.tolist()) & own for own in units)]
            most = max((found[k] for k in tied), default=0)
            whole = len(tied) < len(axes)  # one of them is ignored, so that the others stay as wide as it
            for k in tied:
                found[k] = len(self.groups[k]) if whole else most
        return found
