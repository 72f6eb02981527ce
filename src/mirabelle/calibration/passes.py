"""Layer-by-layer changes of a model: each module is changed by its inputs after the modules before it have changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from mirabelle.model.watch import EndOfForward, LayerRun, watch
from mirabelle.task.batch import Inputs

Occurrence: TypeAlias = tuple[str, int]  # the name of a module, and the index of its run within a forward pass


class Batches(Protocol):
    """Inputs of a model in batches, which can be iterated over several times, such as `SampleBatches`."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Inputs]: ...


class Fitting(Protocol):
    """Collects the inputs of one run of a module over a pass of `layer_by_layer`, and then changes the module."""

    def take(self, given: Tensor) -> bool:
        """Add a batch of the module's inputs; return whether it is known by now that the module will change."""
        ...

    def finish(self) -> None:
        """Change the module, if necessary; called after the last batch."""
        ...


@torch.no_grad()
def layer_by_layer(
    model: nn.Module,
    batches: Batches,
    modules: Mapping[str, nn.Module],
    begin: Callable[[str, bool], Fitting],
) -> None:
    """Change modules in the order in which they run, each by the inputs that it gets after the modules before have changed.

    A pass over the batches stops at the first module that will change. It collects the inputs of this module batch by batch;
    then the module changes, and the next pass continues from there. Modules that do not change need no pass of their own. A
    single batch needs only one pass: it contains all inputs of a module, and the forward pass continues after the change.

    A module that runs several times in a forward pass changes at each of its runs. With a single batch, the modules after it
    get outputs of the state that the module had at each run; with several batches, outputs of its last state.

    Args:
        model: the model, which is changed in place; its mode (training or evaluation) is restored.
        batches: calibration samples.
        modules: the modules to change, by name.
        begin: (name, whether the module is known to change) -> `Fitting` for one run of the module. It is called again in every
            pass, at the first batch in which the module runs.
    """
    done: set[Occurrence] = set()
    changing: set[Occurrence] = set()
    more = True
    while more:
        one = _Pass(begin, done, changing, alone=len(batches) == 1)
        watch(model, one.counted(batches), modules, before=one.look)
        more = one.finish()


class _Pass:
    """One pass of `layer_by_layer`.

    Args:
        begin: as in `layer_by_layer`.
        done: runs that are finished.
        changing: runs of modules that are known to change, but whose inputs are still to be collected.
        alone: whether there is a single batch.
    """

    def __init__(
        self, begin: Callable[[str, bool], Fitting], done: set[Occurrence], changing: set[Occurrence], *, alone: bool
    ) -> None:
        self._begin, self._done, self._changing, self._alone = begin, done, changing, alone
        self._fittings: dict[Occurrence, Fitting] = {}  # in the order in which they run
        self._begun: dict[Occurrence, int] = {}  # the batch of each run's first inputs
        self._last: Occurrence | None = None  # the run that will change, at which the forward pass stops
        self._whole = True  # whether the last run has collected all of its inputs
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
        assert layer.input is not None, "the modules must take a tensor"
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
        """Change the modules whose inputs are complete; return whether another pass is needed."""
        for run, fitting in self._fittings.items():
            if run == self._last and not self._whole:
                self._changing.add(run)
            else:
                fitting.finish()
                self._done.add(run)
        return self._last is not None

    def _ends_at(self, run: Occurrence) -> None:
        """Stop the pass at a run that will change; its inputs are complete if this was known from its first batch on."""
        self._last, self._whole = run, self._begun[run] == self._batch or run in self._changing
        following = list(self._fittings)[list(self._fittings).index(run) + 1 :]
        for other in following:
            del self._fittings[other]
