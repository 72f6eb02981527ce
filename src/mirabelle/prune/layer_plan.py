"""Choose the residual layers of a model to drop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from mirabelle.allocation.amount import Amount
from mirabelle.allocation.knapsack import tables_of
from mirabelle.allocation.limits import BYTES, CountedLimit, MeasuredLimit, Stopwatch
from mirabelle.allocation.plan import Item, Limit, within_limits
from mirabelle.errors import UserError
from mirabelle.graph.costs import Polynomial, counted, mac_products
from mirabelle.graph.interpret import kept_without
from mirabelle.graph.propagate import propagated
from mirabelle.graph.trace import traced
from mirabelle.model.architecture import architecture_of
from mirabelle.prune.residual_blocks import Block, blocks_of, parameters_in, rises_of_loss, without
from mirabelle.records.patterns import every_pattern_matches, matches
from mirabelle.task.batch import arguments_of
from mirabelle.task.goal import limit_of
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.run.run import Run

_NEEDLESS = 1e-3  # smallest damage, relative to the largest: a layer without effect is kept, too, if the limits allow it


class LayerPlan:
    """The residual layers of a model, and those of them that are dropped.

    Args:
        model: the model to prune; it is not changed.
        task: provides example inputs for the trace, and training samples to measure the damage.
        run: records decisions that depend on measured times.
        amount: a sparsity, or limits that the pruned model must meet.
        exclude: patterns of names of layers that are kept.
        samples: number of training samples on which the damage is measured.
        batch: batch size for the measurement of latency.

    Raises:
        UserError: E112 if a pattern matches nothing, or no layer can be dropped; E113 for a limit that cannot be read; E114 for
            one that cannot be reached; E121 if the model cannot be traced or is a rewritten program.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        run: Run,
        *,
        amount: Amount,
        exclude: tuple[str, ...] = (),
        samples: int = 512,
        batch: int = 1,
    ) -> None:
        self._model, self._task, self._run, self._amount, self._timed_batch = model, task, run, amount, batch
        every_pattern_matches("exclude", exclude, [name for name, _ in model.named_modules() if name])
        self._exclude = exclude
        if architecture_of(model).rewritten is not None:
            raise UserError("E121", "a rewritten program has no layers to drop", "drop layers before channels")
        self._example = task.example()
        args, kwargs = arguments_of(self._example.inputs)
        self._program = traced(model, args, kwargs)
        found = blocks_of(model, self._program, self._example)
        self.blocks = [block for block in found if not matches(block.name, exclude)]
        if not self.blocks:
            why = "`exclude` leaves none" if found else "none of the model's modules adds its input to its output"
            remedy = "shorten `exclude`" if found else "use prune.Channels, or a student with `width`"
            raise UserError("E112", f"no layer can be dropped: {why}", remedy)
        begin = time.perf_counter()
        self.rises = rises_of_loss(model, self.blocks, task, task.train.drawn(samples, run.seed))
        self.ranking_seconds = time.perf_counter() - begin
        self.dropped = self._dropped()

    def smaller(self) -> nn.Module:
        """The model without the dropped layers."""
        return without(self._model, self.dropped)

    def left(self, smaller: nn.Module) -> dict[str, str]:
        """Name of each parameter with two or more dimensions that is kept -> why."""
        reasons: dict[str, str] = {}
        for name, parameter in smaller.named_parameters():
            if parameter.dim() > 1:
                inside = next((block for block in self.blocks if name.startswith(f"{block.name}.")), None)
                if inside is not None:
                    reasons[name] = "in a layer that is kept"
                else:
                    reasons[name] = "excluded" if matches(name, self._exclude) else "in no residual layer"
        return reasons

    def describe(self) -> Iterator[str]:
        """Sentences on the dropped layers, and on how much the loss rises without each layer."""
        yield f"{len(self.dropped)} of {len(self.blocks)} residual layers are dropped"
        for block, rise in zip(self.blocks, self.rises, strict=True):
            what = "dropped" if block in self.dropped else "kept"
            yield f"{block.name}: {what} (the loss rises by {rise:.3g} without it)"

    def _dropped(self) -> list[Block]:
        if self._amount.sparsity is not None:
            order = np.argsort(self.rises, kind="stable")
            gone = set(order[: math.floor(self._amount.sparsity * len(self.blocks))].tolist())
            return [block for k, block in enumerate(self.blocks) if k in gone]
        least = _NEEDLESS * (max(self.rises) or 1.0)
        items = [
            Item(block.name, np.array([rise]), np.array([0.0, max(rise, least)]), (0, 1))
            for block, rise in zip(self.blocks, self.rises, strict=True)
        ]

        def planned() -> list[int]:
            return within_limits(items, list(self._limits()), uniform=False)

        if self._amount.latency is None:
            return self._without(planned())
        kept = self._run.decide("kept", lambda: " ".join(map(str, planned())))
        return self._without([int(count) for count in kept.split()])

    def _without(self, counts: Sequence[int]) -> list[Block]:
        return [block for block, count in zip(self.blocks, counts, strict=True) if count == 0]

    def _limits(self) -> Iterator[Limit]:
        macs = self._macs()
        own = [parameters_in(self._model, block) for block in self.blocks]
        parameters = _polynomial(sum(parameter.numel() for parameter in self._model.parameters()), own)
        size = {key: BYTES * value for key, value in parameters.items()}
        for name, polynomial in (("macs", macs), ("parameters", parameters), ("size", size)):
            asked = getattr(self._amount, name)
            if asked is not None:
                yield CountedLimit.exact(name, limit_of(name, asked, sum(polynomial.values()), where=""), polynomial)
        if self._amount.latency is not None:
            watch = Stopwatch(self._model, self._task, self._timed_batch)
            limit = limit_of("latency", self._amount.latency, watch.start_ms, where="")
            sizes = [(macs[k,], count) for k, count in enumerate(own)]
            yield MeasuredLimit(
                "latency",
                limit,
                partial(tables_of, self._times(watch, sizes)),
                lambda counts: watch(without(self._model, self._without(counts))),
            )

    def _times(self, watch: Stopwatch, sizes: Sequence[tuple[float, float]]) -> Polynomial:
        """The latency as a polynomial: the time saved by dropping all blocks of one size is divided equally among them."""
        saved = {}
        for size in dict.fromkeys(sizes):
            alike = [block for block, other in zip(self.blocks, sizes, strict=True) if other == size]
            saved[size] = watch.start_ms * max(0.0, 1 - watch.ratio(without(self._model, alike)).median) / len(alike)
        return _polynomial(watch.start_ms, [saved[size] for size in sizes])

    def _macs(self) -> Polynomial:
        flow = propagated(self._program)
        whole, batch = kept_without(flow, np.zeros(0, np.int64)), len(self._example)
        by_node = [(node, counted([product], whole) / batch) for node, product in mac_products(flow)]
        own = [sum(macs for node, macs in by_node if node in block.nodes) for block in self.blocks]
        return _polynomial(sum(macs for _, macs in by_node), own)


def _polynomial(whole: float, own: Sequence[float]) -> Polynomial:
    """A cost as a polynomial: the part that is independent of all items, and the part of each item."""
    return {(): whole - sum(own), **{(k,): float(value) for k, value in enumerate(own)}}
