"""Choose the units of a model to remove (channels, neurons, heads), and remove them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import nn

from mirabelle.allocation.amount import Amount
from mirabelle.allocation.knapsack import Table
from mirabelle.allocation.limits import BYTES, CountedLimit, MeasuredLimit, Stopwatch
from mirabelle.allocation.operator_times import OperatorTimes, in_items
from mirabelle.allocation.plan import Item, Limit, all_together, allowed_counts, each_alone, within_limits
from mirabelle.errors import UserError
from mirabelle.graph.constant_channels import ConstantsCut, constants_cut
from mirabelle.graph.costs import Polynomial, Product, counted, mac_products, parameter_products, polynomial_of
from mirabelle.graph.flow import Kept
from mirabelle.graph.groups import AxisGroup, frozen_in, groups_of, kept_whole, why_nothing_goes
from mirabelle.graph.interpret import kept_without
from mirabelle.graph.propagate import propagated
from mirabelle.graph.surgery import cut
from mirabelle.graph.trace import traced
from mirabelle.graph.units import Array
from mirabelle.model.architecture import architecture_of
from mirabelle.prune.ranking import Ranking, ranked
from mirabelle.records.patterns import any_matches, every_pattern_matches, matches
from mirabelle.scores.score import Score
from mirabelle.task.batch import arguments_of
from mirabelle.task.goal import limit_of
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.run.run import Run

_MOST_REASONS = 2  # for one parameter, and in the description of a cut


class ChannelPlan:
    """The groups of units of a model, and the units of each group that are removed.

    Args:
        model: the model to prune; it is not changed.
        task: provides example inputs for the trace, and data for the score.
        run: records decisions that depend on measured times.
        amount: a sparsity, or limits that the pruned model must meet.
        widths: instead of an amount, patterns of names of groups -> number of units that they keep.
        score: importance of weights.
        include: patterns of names of groups that may be pruned; all groups, if it is empty.
        exclude: patterns of parameter names; a group with a matching parameter is not pruned.
        ranks_together: whether groups may lose different fractions of their units.
        floor: least share that a group keeps of what an equal sparsity would leave it, if groups are ranked together.
        minimum: smallest number of units that each group keeps.
        multiple: the number of units of each group is a multiple of this; "measured" finds one by timing.
        batch: batch size for the measurement of latency.

    Raises:
        UserError: E110 for a width above that of the group; E111 for two widths of groups that must keep the same number; E112
            if a pattern matches nothing, or no group can be pruned; E113 for a limit that cannot be read; E114 for one that
            cannot be reached; E121 if the model cannot be traced.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        run: Run,
        *,
        amount: Amount,
        score: Score,
        widths: Mapping[str, int] | None = None,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        ranks_together: bool = False,
        floor: float = 0.0,
        minimum: int = 1,
        multiple: int | Literal["measured"] = 1,
        batch: int = 1,
    ) -> None:
        names = [name for name, _ in model.named_parameters()]
        every_pattern_matches("exclude", exclude, names)
        self._model, self._task, self._run = model, task, run
        self._amount, self._widths, self._score, self._ranks_together = amount, widths, score, ranks_together
        self._floor, self._minimum, self._multiple, self._timed_batch = floor, minimum, multiple, batch
        self._batch = len(task.example())
        self._example = arguments_of(task.example().inputs)
        self._program = traced(model, *self._example)
        self._flow = propagated(self._program)
        found = groups_of(self._program, self._flow)
        every_pattern_matches("include", include, [group.members[0].name for group in found])
        every_pattern_matches("widths", tuple(widths or ()), [name for group in found for name in _names(group)])
        meant = [group for group in found if not include or matches(group.members[0].name, include)]
        free = [group for group in meant if not any(matches(member.name, exclude) for member in group.members)]
        if not free:
            why = "`exclude` leaves none" if meant else why_nothing_goes(frozen_in(self._program, self._flow))
            remedy = "shorten `exclude`" if meant else "prune single weights: prune.Weights"
            raise UserError("E112", f"no channel, neuron or head can be cut: {why}", remedy)
        self._given, self._meant, self._exclude = found, meant, exclude
        begin = time.perf_counter()
        self.groups, self._rankings = self._ranked(free)
        self.ranking_seconds = time.perf_counter() - begin
        self._tied = self._tied_groups()
        self._item_of = [next(n for n, (tied, _) in enumerate(self._tied) if k in tied) for k in range(len(self.groups))]
        self.removed = self._without(self._counts())
        self.constants = ConstantsCut()

    def cut(self) -> nn.Module:
        """The model without the removed units; constants of removed units are added to the layers that read them."""
        smaller, kept = self._cut(self.removed), self._kept(self.removed)
        self.constants = constants_cut(self._program, self._flow, kept, self._example)
        self.constants.give_to(smaller, self._program, self._flow, kept)
        return smaller

    def with_counts(self, counts: Sequence[int]) -> nn.Module:
        """The model whose items keep these numbers of units, as `cut` makes it."""
        removed = self._without(counts)
        smaller, kept = self._cut(removed), self._kept(removed)
        constants_cut(self._program, self._flow, kept, self._example).give_to(smaller, self._program, self._flow, kept)
        return smaller

    def parameters_by_name(self) -> dict[str, Polynomial]:
        """Name of each parameter that the program uses -> its number of elements, in the fractions that the items keep."""
        used = [source.name for source in self._program.sources.values() if source.kind == "parameter"]
        products = parameter_products(self._program, self._flow)
        return {name: self._in_items([product]) for name, product in zip(dict.fromkeys(used), products, strict=True)}

    def macs(self) -> Polynomial:
        """The multiply-accumulates for one sample, in the fractions that the items keep."""
        whole = self._in_items([product for _, product in mac_products(self._flow)])
        return {key: value / self._batch for key, value in whole.items()}

    def milliseconds(self, fractions: Sequence[Table]) -> Mapping[tuple[int, ...], Table]:
        """Expected milliseconds of a call, as tables over the fractions that the options of the items keep."""
        return self._times.tables(fractions)

    def _in_items(self, products: Sequence[Product]) -> Polynomial:
        return in_items(polynomial_of(products, self._flow, self.groups), self._item_of)

    def left(self, smaller: nn.Module) -> dict[str, str]:
        """Name of each parameter with two or more dimensions from which nothing is cut -> why."""
        before = {name: parameter.shape for name, parameter in self._model.named_parameters()}
        free, meant, ranked = (
            {member.name for group in groups for member in group.members} for groups in (self._given, self._meant, self.groups)
        )
        frozen: dict[str, list[str]] = {}
        for fixed in frozen_in(self._program, self._flow):
            if fixed.dimension < 2:  # noqa: PLR2004 (outputs and inputs; kernels are never cut)
                frozen.setdefault(fixed.name, []).extend(why for why in fixed.reasons if why not in frozen.get(fixed.name, ()))
        reasons: dict[str, str] = {}
        for name, parameter in smaller.named_parameters():
            if parameter.dim() < 2 or before.get(name) != parameter.shape:  # noqa: PLR2004 (biases and norms)
                continue
            if name not in free:
                reasons[name] = "; ".join(frozen.get(name, ["the program does not use it"])[:_MOST_REASONS])
            elif matches(name, self._exclude) or name in meant - ranked:
                reasons[name] = (
                    "excluded, or cut only together with what is" if self._exclude else "the score does not apply to it"
                )
            elif name not in meant:
                reasons[name] = "not in `include`"
            else:
                reasons[name] = "the plan keeps all its units"
        return reasons

    @property
    def items(self) -> list[tuple[Item, tuple[str, ...]]]:
        """What is cut together: scores, damages and allowed widths, and the names of its groups."""
        return [
            (item, tuple(self.groups[k].name for k in tied)) for item, (tied, _) in zip(self._items(), self._tied, strict=True)
        ]

    def describe(self, smaller: nn.Module) -> Iterator[str]:
        """Sentences on the removed units, group by group, and on whether a rewritten program replaces the model's code."""
        total, gone = sum(map(len, self.groups)), sum(map(len, self.removed))
        yield f"{gone:,} of {total:,} units in {len(self.groups)} groups are cut"
        for group, units in zip(self.groups, self.removed, strict=True):
            yield f"{group.name}: {len(group)} become {len(group) - len(units)} ({len(group.members)} dimensions of tensors)"
        yield from self.constants.sentences()
        whole = kept_whole(frozen_in(self._program, self._flow))
        for sentence in whole[:_MOST_REASONS]:
            yield f"kept whole: {sentence}"
        if len(whole) > _MOST_REASONS:
            yield f"kept whole for {len(whole) - _MOST_REASONS} more reasons: mirabelle inspect --groups lists them"
        why = architecture_of(smaller).rewritten
        if why:
            yield f"the module's code does not work with the new widths ({why}): a rewritten program in eval mode replaces it"

    def _cut(self, removed: Sequence[Array]) -> nn.Module:
        return cut(self._model, self._program, self._flow, self._kept(removed), self._example)

    def _kept(self, removed: Sequence[Array]) -> Kept:
        return kept_without(self._flow, np.concatenate([np.zeros(0, np.int64), *removed]))

    def _ranked(self, free: Sequence[AxisGroup]) -> tuple[list[AxisGroup], list[Ranking]]:
        """The groups with tensors to which the score applies, and the ranking of their units."""
        score = self._score
        rankings = ranked(score, self._model, self._task, free, program=self._program, flow=self._flow, seed=self._run.seed)
        pairs = [(group, ranking) for group, ranking in zip(free, rankings, strict=True) if ranking is not None]
        if not pairs:
            name = type(score).__name__
            message = f"{name} applies to no tensor of the groups that can be cut"
            raise UserError("E112", message, 'use score = "Magnitude", which applies to all weights')
        return [group for group, _ in pairs], [ranking for _, ranking in pairs]

    def _without(self, counts: Sequence[int]) -> list[Array]:
        """The units of each group that are removed if the items keep these numbers of units."""
        return [ranking.units[: len(ranking.units) - counts[self._item_of[k]]] for k, ranking in enumerate(self._rankings)]

    def _counts(self) -> list[int]:
        """The number of units that each item keeps."""
        items = self._items()
        if self._widths is not None:
            return [self._given_width(item, tied) for item, (tied, _) in zip(items, self._tied, strict=True)]
        if self._amount.sparsity is not None:
            sparsity = self._amount.sparsity
            return all_together(items, sparsity, self._floor) if self._ranks_together else each_alone(items, sparsity)

        def planned() -> list[int]:
            limits = [*self._counted_limits(), *self._measured_limits()]
            return within_limits(items, limits, uniform=not self._ranks_together)

        if self._amount.latency is None:
            return planned()
        # A plan that depends on measured times is recorded, so that a repeated run gives the same model.
        return [int(count) for count in self._run.decide("kept", lambda: " ".join(map(str, planned()))).split()]

    def _given_width(self, item: Item, tied: Sequence[int]) -> int:
        """The number of units that an item keeps by the given widths; all, if none is given for its groups."""
        names = [name for k in tied for name in _names(self.groups[k])]
        given = {pattern: width for pattern, width in (self._widths or {}).items() if any_matches(names, (pattern,))}
        if len(set(given.values())) > 1:
            listed = ", ".join(f"{pattern} = {width}" for pattern, width in given.items())
            message = f"{item.name} has several widths: {listed}"
            raise UserError("E111", message, "give one width for groups that are cut together", path=("widths",))
        width = next(iter(given.values()), len(item))
        if width > len(item) or (width < len(item) and item.allowed[0] == len(item)):
            why = "must keep all its" if width < len(item) else "has"
            message = f"{item.name} {why} {len(item)} units; asked are {width}"
            raise UserError("E110", message, "mirabelle inspect --groups lists groups and their units", path=("widths",))
        return width

    def _counted_limits(self) -> Iterator[Limit]:
        """The limits on multiply-accumulates, parameters and size, which are computed without running the model."""
        parameters = list(parameter_products(self._program, self._flow))
        macs = [product for _, product in mac_products(self._flow)]
        for name, products, factor in (
            ("macs", macs, 1 / self._batch),
            ("parameters", parameters, 1.0),
            ("size", parameters, BYTES),
        ):
            asked = getattr(self._amount, name)
            if asked is not None:
                start = factor * counted(products, kept_without(self._flow, np.zeros(0, np.int64)))
                polynomial = {key: factor * value for key, value in self._in_items(products).items()}
                limit = limit_of(name, asked, start, where="")
                yield CountedLimit(name, limit, polynomial, partial(self._counted, products, factor))

    def _counted(self, products: Sequence[Product], factor: float, counts: Sequence[int]) -> float:
        return factor * counted(products, kept_without(self._flow, np.concatenate(self._without(counts))))

    def _measured_limits(self) -> Iterator[Limit]:
        """The limit on the latency in the runtime."""
        if self._amount.latency is not None:
            start = self._stopwatch.start_ms
            limit = limit_of("latency", self._amount.latency, start, where="")
            yield MeasuredLimit(
                "latency", limit, self._times.tables, lambda counts: self._stopwatch(self._cut(self._without(counts)))
            )

    @cached_property
    def _stopwatch(self) -> Stopwatch:
        return Stopwatch(self._model, self._task, self._timed_batch)

    @cached_property
    def _times(self) -> OperatorTimes:
        return OperatorTimes(
            self._flow,
            self.groups,
            self._item_of,
            whole_ms=self._stopwatch.start_ms,
            batch=self._timed_batch,
            traced_batch=self._batch,
            threads=torch.get_num_threads(),
        )

    def _items(self) -> list[Item]:
        """The items of the allocation; groups that must keep the same number of units form one item."""
        multiple = self._multiple
        if isinstance(multiple, str):
            multiple = self._run.decide("multiple", self._times.best_multiple)
        items = []
        for tied, whole in self._tied:
            size = len(self.groups[tied[0]])
            scores = np.sqrt(np.sum([np.square(self._rankings[k].scores) for k in tied], axis=0))
            damage = np.sum([self._rankings[k].damage for k in tied], axis=0)
            counts = (size,) if whole else allowed_counts(size, self._minimum, multiple)
            items.append(Item(self.groups[tied[0]].name, scores, damage, counts))
        return items

    def _tied_groups(self) -> list[tuple[tuple[int, ...], bool]]:
        """Sets of groups that must keep the same number of units, and whether a set keeps all, as one axis cannot be cut."""
        found = [({k}, False) for k in range(len(self.groups))]
        for axes in self._flow.equal:
            units = [set(np.unique(rows).tolist()) for axis in axes if (rows := self._flow.units.resolve(axis)) is not None]
            tied = {k for k, group in enumerate(self.groups) if any(set(group.units.tolist()) & own for own in units)}
            meeting = [part for part in found if part[0] & tied]
            if meeting:
                whole = len(tied) < len(axes) or any(stays for _, stays in meeting)
                found = [part for part in found if part not in meeting] + [(set().union(*(own for own, _ in meeting)), whole)]
        return sorted((tuple(sorted(own)), whole) for own, whole in found)


def _names(group: AxisGroup) -> tuple[str, str]:
    """The name of a group, and the name of its first parameter, without the dimension."""
    return group.name, group.members[0].name
