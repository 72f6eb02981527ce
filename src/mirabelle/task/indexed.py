"""Samples that are read when they are needed: data larger than the memory, with the order and identity of samples in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from mirabelle.errors import UserError
from mirabelle.run.files import digest
from mirabelle.task.batch import Batch, Inputs, map_tensors, tensors_of
from mirabelle.task.reading_cost import Reading
from mirabelle.task.samples import Samples, Shuffled, check_finite, check_targets

IN_MEMORY = 1 << 30  # bytes of inputs: data that need more are read when they are needed
_TOGETHER = 1 << 25  # bytes of inputs of small batches that are read together
Found = TypeVar("Found")
Read: TypeAlias = Callable[[Tensor], Inputs]  # indices of samples, (count,) -> their inputs, each (count, ...)
Cost: TypeAlias = Callable[[int], Reading]  # number of samples -> how so many of them are read
_TIMED = 16  # samples by which reading is timed


def ahead(read: Callable[[int], Found], places: Sequence[int]) -> Iterator[Found]:
    """What is read at some places, each of which is read while the one before is used."""
    with ThreadPoolExecutor(1) as reader:
        coming = None
        for place in places:
            present, coming = coming, reader.submit(read, place)
            if present is not None:
                yield present.result()
        if coming is not None:
            yield coming.result()


def _part(batch: Batch, rows: slice) -> Batch:
    """Some samples of a batch, in memory of their own: kernels may sum in another order where tensors begin elsewhere."""
    inputs = map_tensors(batch.inputs, lambda tensor: tensor[rows].clone())
    return Batch(inputs, batch.targets[rows].clone(), None if batch.index is None else batch.index[rows])


class Indexed(Samples):
    """Samples whose inputs are read when they are needed; their targets are in memory.

    Everything that is done with `Samples` is done with these, to the same bits: the order follows from (seed, epoch), a killed
    training goes on in the middle of an epoch without reading what came before, and tests compare the same samples.

    Args:
        read: (indices of samples, (count,)) -> their inputs. Equal indices give equal inputs.
        targets: (samples, ...); None for data without labels.
        identity: of the inputs, in words or digits, such as a digest of names and sizes of files: equal for equal inputs.
        count: number of samples, needed without targets.
        read_ahead: whether a thread may read the next batch of a training while the one before is used. Then `read` must not
            draw from global generators.
        cost: number of samples -> how so many of them are read, and what it costs; by default it is measured on a few.

    Example:
        >>> squares = Indexed(lambda index: index.float()[:, None] ** 2, torch.arange(10), "squares")
        >>> squares.at(torch.tensor([3, 1])).inputs
        tensor([[9.],
                [1.]])
        >>> len(squares.drawn(4, seed=0)), squares.digest() == squares.digest()
        (4, True)
    """

    def __init__(
        self,
        read: Read,
        targets: Tensor | None,
        identity: str,
        *,
        count: int = 0,
        read_ahead: bool = False,
        cost: Cost | None = None,
    ) -> None:
        self.labelled = targets is not None
        self.targets = torch.zeros(count, 0) if targets is None else targets
        check_targets(self.targets)
        if not self.targets.dim() or not len(self.targets):
            raise UserError("E131", "there are no samples", "check the data")
        check_finite(self.targets, "targets")
        self.read, self.identity, self._read_ahead, self._cost = read, identity, read_ahead, cost
        self._known = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what describes the reading, which stays where the data are."""
        return {**vars(self), "_cost": None}

    @property
    def inputs(self) -> Inputs:
        """All inputs, read into memory."""
        return self.read(torch.arange(len(self)))

    def at(self, index: Tensor) -> Batch:
        inputs = self.read(index)
        for tensor in tensors_of(inputs):
            check_finite(tensor, "inputs", index)
        return Batch(inputs, self.targets[index], index)

    def between(self, start: int, stop: int) -> Batch:
        return self.at(torch.arange(start, min(stop, len(self))))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        places = range(0, len(self), batch_size)  # not ahead: outputs are kept meanwhile, and memory of two threads scatters
        return self._batches(
            lambda start, stop: torch.arange(start, min(stop, len(self))), places, batch_size, own_thread=False
        )

    def taken(self, shuffled: Shuffled, first: int) -> Iterator[Batch]:
        size = shuffled.batch_size
        return self._batches(shuffled.indices, range(first * size, len(shuffled) * size, size), size, own_thread=True)

    def _batches(self, indices: Callable[[int, int], Tensor], places: range, size: int, *, own_thread: bool) -> Iterator[Batch]:
        """The batches that begin at some places; small ones are read together, which costs little more than to read one."""
        few = self.first(1) if self._read_ahead and places else None
        sample = 0 if few is None else sum(tensor.nbytes for tensor in tensors_of(few.inputs))
        together = max(1, _TOGETHER // max(1, sample * size)) * size if self._read_ahead else size

        def read(place: int) -> Batch:
            return self.at(indices(place, min(place + together, places.stop)))

        groups = range(places.start, places.stop, together)
        for whole in ahead(read, groups) if self._read_ahead and own_thread else map(read, groups):
            if len(whole) <= size:
                yield whole
            else:
                yield from (_part(whole, slice(start, start + size)) for start in range(0, len(whole), size))

    def split(self, fraction: float, seed: int) -> tuple[Samples, Samples]:
        held, order = self._held(fraction), self.order(seed)
        return self.chosen(order[held:]), self.chosen(order[:held])

    def chosen(self, index: Tensor) -> Indexed:
        """Some of the samples, in the order of their indices, which are read when they are needed, too."""
        identity = digest(self.identity.encode(), index.numpy().tobytes())
        read, targets = partial(_read_chosen, self.read, index), self.targets[index] if self.labelled else None
        return Indexed(read, targets, identity, count=len(index), read_ahead=self._read_ahead, cost=self._cost)

    def with_more(self, inputs: Inputs, targets: Tensor) -> Indexed:
        """These samples and, behind them, others in memory.

        Args:
            inputs: of the others, like those that `read` gives.
            targets: of all samples.
        """
        identity = digest(self.identity.encode(), Samples(inputs).digest().encode())
        read = partial(_read_more, self.read, len(self), inputs)
        found = Indexed(read, targets, identity, read_ahead=self._read_ahead, cost=self._cost)
        found.labelled = self.labelled
        return found

    def against(self, targets: Tensor) -> Samples:
        return self._with(targets, labelled=False)

    def with_targets(self, change: Callable[[Tensor], Tensor]) -> Samples:
        return self._with(change(self.targets), labelled=self.labelled)

    def on(self, device: torch.device) -> Samples:
        """The samples themselves, which stay where they are read."""
        del device
        return self

    @property
    def nbytes(self) -> int:
        few = self.first(1)
        return len(self) * sum(tensor.nbytes for tensor in (*tensors_of(few.inputs), few.targets))

    def reading(self) -> Reading:
        if self._cost is not None:
            return self._cost(len(self))
        few = torch.linspace(0, len(self) - 1, min(len(self), _TIMED)).long()
        begin = time.perf_counter()
        self.read(few)
        return Reading("source", 0, seconds=(time.perf_counter() - begin) * len(self) / len(few))

    def _with(self, targets: Tensor, *, labelled: bool) -> Indexed:
        found = Indexed(self.read, targets, self.identity, read_ahead=self._read_ahead, cost=self._cost)
        found.labelled = labelled
        return found

    def _identifying_tensors(self) -> tuple[Tensor, ...]:
        return (self.targets,) if self.labelled else ()

    def _computed_digest(self) -> str:
        return digest(self.identity.encode(), super()._computed_digest().encode())


def _read_chosen(read: Read, index: Tensor, own: Tensor) -> Inputs:
    return read(index[own])


def _read_more(read: Read, count: int, more: Inputs, index: Tensor) -> Inputs:
    """The inputs of samples of which those from `count` on are in memory."""
    own, others = (index < count).nonzero().flatten(), (index >= count).nonzero().flatten()
    if not len(others):
        return read(index)
    kept = map_tensors(more, lambda tensor: tensor[index[others] - count])
    if not len(own):
        return kept
    first, order = read(index[own]), torch.cat([own, others]).argsort()
    pairs = iter([torch.cat(both)[order] for both in zip(tensors_of(first), tensors_of(kept), strict=True)])
    return map_tensors(first, lambda _: next(pairs))
