"""Changing the modules of a model layer by layer, each by its inputs after the layers before it have changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from mirabelle.calibration.samples import SampleBatches
from mirabelle.model.watch import EndOfForward, LayerRun, watch
from mirabelle.task.batch import Inputs

Occurrence: TypeAlias = tuple[str, int]  # the name of a module, and which of its runs within a forward


class Fitting(Protocol):
    """What `layer_by_layer` does with one run of a module, in one pass."""

    def take(self, given: Tensor) -> bool:
        """Take in a batch of the module's inputs; whether the module is going to change, as far as is known by then."""
        ...

    def finish(self) -> None:
        """All batches were taken: change the module, if it is to change."""
        ...


@torch.no_grad()
def layer_by_layer(
    model: nn.Module,
    batches: SampleBatches,
    modules: Mapping[str, nn.Module],
    begin: Callable[[str, bool], Fitting],
) -> None:
    """Change modules in the order in which they run: each sees inputs that the modules before it give after their change.

    A pass ends at the first module that is going to change. It takes in that module's inputs batch by batch; then the module
    changes, and the next pass goes further. Modules before it that stay as they are need no pass of their own. A single batch
    needs one pass in all: it holds everything that a module needs, and the forward goes on after the change.

    A module that runs several times in a forward changes at each of its runs. The modules after it then get what it gives, in a
    single batch, in the state that it had at each run, and in several batches in its last state.

    Args:
        model: whose modules change; is left in the mode in which it was.
        batches: of calibration samples.
        modules: by name.
        begin: (name, whether it is known to change) gives what takes in the inputs of one run of a module. It is called anew in
            every pass, for the first batch in which the module runs.
    """
    done: set[Occurrence] = set()
    changing: set[Occurrence] = set()
    more = True
    while more:
        one = _Pass(begin, done, changing, alone=len(batches) == 1)
        watch(model, one.counted(batches), modules, before=one.look)
        more = one.finish()


class _Pass:
    """One pass of `layer_by_layer`, which says what `done` and `changing` are."""

    def __init__(
        self, begin: Callable[[str, bool], Fitting], done: set[Occurrence], changing: set[Occurrence], *, alone: bool
    ) -> None:
        self._begin, self._done, self._changing, self._alone = begin, done, changing, alone
        self._fittings: dict[Occurrence, Fitting] = {}  # in the order in which they run
        self._begun: dict[Occurrence, int] = {}  # in which batch
        self._last: Occurrence | None = None  # the run that changes, behind which nothing is looked at
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

    def _ends_at(self, run: Occurrence) -> None:
        """A run turns out to change: what follows it waits. It has taken in everything if this shows in its first batch."""
        self._last, self._whole = run, self._begun[run] == self._batch or run in self._changing
        following = list(self._fittings)[list(self._fittings).index(run) + 1 :]
        for other in following:
            del self._fittings[other]
