"""Calibration samples in batches whose size the model's activations decide, and rows that are drawn from all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mirabelle.errors import UserError
from mirabelle.model.watch import watch
from mirabelle.numerics.draws import generator_from
from mirabelle.task.batch import Batch, Inputs, Samples, Stream, map_tensors, tensors_of

LEAST_ROWS = 10_000  # that are drawn of a layer's rows, where there are so many
_BYTES_AT_ONCE = 1 << 26  # of the largest result of an operator: a forward holds a few of that size
_PROBED = (2, 3)  # samples, to see what one more takes; not one, which some models give a dimension less
_SHUFFLED = 1 << 24  # numbers that are shuffled to draw from; more would take memory that grows with the samples


class CalibrationSamples:
    """Samples of one shape, read part by part and as often as needed; what is held is what the caller holds.

    Args:
        count: of the samples.
        read: gives the inputs of samples `start` to `stop`.

    Example:
        >>> samples = CalibrationSamples.of([torch.zeros(2, 3), torch.ones(3, 3)])
        >>> len(samples), samples.inputs(1, 3)
        (5, tensor([[0., 0., 0.],
                [1., 1., 1.]]))
    """

    def __init__(self, count: int, read: Callable[[int, int], Inputs]) -> None:
        self._count, self._read = count, read

    @classmethod
    def of(cls, batches: Iterable[Inputs | Batch] | CalibrationSamples) -> CalibrationSamples:
        """The samples of all batches, one after the other; how they are divided into batches does not matter.

        Raises:
            UserError: E131 no batch, or batches that do not fit together.
        """
        if isinstance(batches, CalibrationSamples):
            return batches
        parts = [part.inputs if isinstance(part, Batch) else part for part in batches]
        if not parts:
            raise UserError("E131", "recovery needs calibration data, and there is no batch", "give at least one batch")
        lengths = [_length(part, parts[0]) for part in parts]
        starts = list(accumulate(lengths, initial=0))

        def read(start: int, stop: int) -> Inputs:
            found = [
                _slice(part, max(start - first, 0), stop - first)
                for part, first, length in zip(parts, starts, lengths, strict=False)
                if first < stop and first + length > start
            ]
            if len(found) == 1:
                return found[0]
            whole = iter([torch.cat(tensors) for tensors in zip(*map(tensors_of, found), strict=True)])
            return map_tensors(found[0], lambda _: next(whole))

        return cls(sum(lengths), read)

    @classmethod
    def drawn(cls, data: Samples | Stream, count: int, seed: int) -> CalibrationSamples:
        """The samples of `data.drawn(count, seed)`; where data lie in memory nothing is copied before it is needed."""
        if isinstance(data, Stream):
            return cls.of([data.drawn(count, seed).inputs])
        index = data.order(seed)[:count]
        return cls(len(index), lambda start, stop: data.at(index[start:stop]).inputs)

    def __len__(self) -> int:
        return self._count

    def inputs(self, start: int, stop: int) -> Inputs:
        """The inputs of samples `start` to `stop`, the last one not included."""
        return self._read(start, stop)

    def for_model(self, model: nn.Module) -> SampleBatches:
        """The samples in batches for which no operator of the model gives more than 64 MiB, or of one sample."""
        if self._count <= _PROBED[-1]:
            return SampleBatches(self, self._count)
        fewer, more = (_result_bytes(model, self._read(0, count)) for count in _PROBED)
        each = max((b - a for a, b in zip(fewer, more, strict=False)), default=0)
        return SampleBatches(self, max(1, _BYTES_AT_ONCE // max(each, 1)))


class SampleBatches:
    """Calibration samples in batches of nearly equal sizes; they can be gone over any number of times.

    Args:
        samples: to divide.
        most: samples of a batch.
    """

    def __init__(self, samples: CalibrationSamples, most: int) -> None:
        self._samples = samples
        parts = -(-len(samples) // most)
        self.bounds: Sequence[int] = [len(samples) * k // parts for k in range(parts + 1)]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[Inputs]:
        for start, stop in zip(self.bounds, self.bounds[1:], strict=False):
            yield self._samples.inputs(start, stop)

    def rows_in_all(self, rows_in_first: int) -> int:
        """How many rows all batches have when the first has so many."""
        return rows_in_first * self.bounds[-1] // self.bounds[1]


class DrawnRows:
    """Some of the rows that a layer has over all batches, given out batch by batch.

    Args:
        numbers: of the rows drawn, rising.
    """

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers
        self.given = 0  # of the rows drawn, how many batches so far held
        self._seen = 0

    @classmethod
    def draw(cls, total: int, count: int, seed: int) -> Self:
        """`count` of `total` rows without replacement (all, if there are fewer), the same for the same seed."""
        if total <= _SHUFFLED:
            order = torch.randperm(total, generator=generator_from(seed), dtype=torch.int32)
            return cls(order[:count].sort().values.long())
        drawn = np.random.default_rng(seed).choice(total, min(count, total), replace=False, shuffle=False)
        return cls(torch.from_numpy(np.sort(drawn)))

    def next(self, rows: int) -> Tensor:
        """The numbers, within the next batch, of the rows drawn that it holds; the batch has so many rows."""
        start, self._seen = self._seen, self._seen + rows
        stop = int(torch.searchsorted(self.numbers, self._seen))
        found = self.numbers[self.given : stop] - start
        self.given = stop
        return found


class _ResultBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not say its types
    """The bytes that each operator gives, in the order in which they run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        given = func(*args, **(kwargs or {}))
        self.found.append(sum(part.nbytes for part in pytree.tree_leaves(given) if isinstance(part, Tensor)))
        return given


def _result_bytes(model: nn.Module, inputs: Inputs) -> list[int]:
    results = _ResultBytes()
    with results:
        watch(model, [inputs], {})
    return results.found


def _slice(inputs: Inputs, start: int, stop: int) -> Inputs:
    return map_tensors(inputs, lambda tensor: tensor[start:stop])


def _length(part: Inputs, first: Inputs) -> int:
    """How many samples a batch holds, whose tensors must have the shapes of the first batch's."""
    shapes, due = ([tuple(tensor.shape) for tensor in tensors_of(inputs)] for inputs in (part, first))
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or () in lengths or [shape[1:] for shape in shapes] != [shape[1:] for shape in due]:
        message = f"calibration batches do not fit together: one has shapes {shapes}, the first {due}"
        raise UserError("E131", message, "give samples of one shape")
    return shapes[0][0]
