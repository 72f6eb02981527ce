"""Changing modules one after the other by what they read: passes over calibration samples, each as far as it can go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from mirabelle.calibration.samples import SampleBatches
from mirabelle.model.watch import EndOfForward, LayerRun, watch
from mirabelle.task.batch import Inputs

Run: TypeAlias = tuple[str, int]  # the name of a module, and which of its runs within a forward


class Fitting(Protocol):
    """What `one_after_the_other` does with one run of a module, in one pass."""

    def take(self, given: Tensor) -> bool:
        """Take in a batch of the module's inputs; whether the module is going to change, as far as is known by then."""
        ...

    def finish(self) -> None:
        """All batches were taken: change the module, if it is to change."""
        ...


@torch.no_grad()
def one_after_the_other(
    model: nn.Module,
    batches: SampleBatches,
    modules: Mapping[str, nn.Module],
    begin: Callable[[str, bool], Fitting],
) -> None:
    """Change modules in the order in which they run: each sees inputs that the modules before it give after their change.

    A pass ends at the first module that is going to change. It takes in that module's inputs batch by batch; then the module
    changes, and the next pass goes further. Modules before it that stay as they are need no pass of their own. A single batch
    needs one pass in all: it holds everything that a module needs, and the forward goes on after the change.

    Args:
        model: whose modules change; is left in the mode in which it was.
        batches: of calibration samples.
        modules: by name.
        begin: (name, whether it is known to change) gives what takes in the inputs of one run of a module. It is called anew in
            every pass, for the first batch in which the module runs.
    """
    done: set[Run] = set()
    changing: set[Run] = set()
    more = True
    while more:
        one = _Pass(begin, done, changing, alone=len(batches) == 1)
        watch(model, one.counted(batches), modules, before=one.look)
        more = one.finish()


class _Pass:
    """One pass of `one_after_the_other`, which says what `done` and `changing` are."""

    def __init__(self, begin: Callable[[str, bool], Fitting], done: set[Run], changing: set[Run], *, alone: bool) -> None:
        self._begin, self._done, self._changing, self._alone = begin, done, changing, alone
        self._fittings: dict[Run, Fitting] = {}  # in the order in which they run
        self._begun: dict[Run, int] = {}  # in which batch
        self._last: Run | None = None  # the run that changes, behind which nothing is looked at
        self._whole = True  # whether the last one took in all that it needs
        self._batch, self._runs = -1, Counter[str]()

    def counted(self, batches: Iterable[Inputs]) -> Iterator[Inputs]:
        for self._batch, inputs in enumerate(batches):
            self._runs.clear()
            yield inputs

    def look(self, layer: LayerRun) -> None:
        run = layer.name, self._runs[layer.name]
        self._runs[layer.name] += 1
        if run in self._done:
            return
        if run not in self._fittings:
            if self._last is not None:
                raise EndOfForward
            self._fittings[run], self._begun[run] = self._begin(layer.name, run in self._changing), self._batch
        assert layer.input is not None, "these modules take a tensor"
        if not self._fittings[run].take(layer.input):
            return
        if self._alone:
            self._fittings.pop(run).finish()
            self._done.add(run)
            return
        if run != self._last:
            self._ends_at(run)
        raise EndOfForward

    def finish(self) -> bool:
        """Change what is known in full; whether another pass is needed."""
        for run, fitting in self._fittings.items():
            if run == self._last and not self._whole:
                self._changing.add(run)
            else:
                fitting.finish()
                self._done.add(run)
        return self._last is not None

    def _ends_at(self, run: Run) -> None:
        """A run turns out to change: what follows it waits. It has taken in everything if this shows in its first batch."""
        self._last, self._whole = run, self._begun[run] == self._batch or run in self._changing
        following = list(self._fittings)[list(self._fittings).index(run) + 1 :]
        for other in following:
            del self._fittings[other]
