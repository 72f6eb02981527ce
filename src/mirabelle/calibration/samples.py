"""Calibration samples in batches of bounded memory, and random draws of a layer's rows over all batches."""

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
from mirabelle.task.batch import Batch, Inputs, map_tensors, tensors_of
from mirabelle.task.samples import Samples, Stream

LEAST_ROWS = 10_000  # least number of rows of a layer to draw, if it has as many
# Most bytes of an operator's result; a forward pass holds a few of this size. All samples are one batch if they stay within the
# first limit: then one pass serves all layers. Otherwise batches stay within the second, which fits caches better. Where each
# layer needs a pass of its own then, the first limit is higher: on MiniLM 37 passes take twenty times as long as one.
_BYTES_OF_ALL, _BYTES_OF_A_BATCH, _BYTES_INSTEAD_OF_PASSES = 1 << 26, 1 << 24, 1 << 29
_PROBED = (2, 3)  # numbers of samples that are run to measure the memory of one more; some models squeeze a batch of one
_SHUFFLED = 1 << 24  # up to this many row numbers are shuffled; more would take memory that grows with the samples


class CalibrationSamples:
    """Calibration samples of one shape, read in parts and as often as needed without keeping them in memory.

    Args:
        count: number of samples.
        read: (start, stop) -> inputs of the samples `start` to `stop` − 1.

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
        """The samples of all batches, concatenated; their division into batches has no influence.

        Raises:
            UserError: E131 if there is no batch, or the shapes of the batches differ.
        """
        if isinstance(batches, CalibrationSamples):
            return batches
        parts = [part.inputs if isinstance(part, Batch) else part for part in batches]
        if not parts:
            raise UserError("E131", "recovery needs calibration data; got no batch", "give at least one batch")
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
        """The samples of `data.drawn(count, seed)`; those of data in memory are copied only when they are read."""
        if isinstance(data, Stream):
            return cls.of([data.drawn(count, seed).inputs])
        index = data.order(seed)[:count]
        return cls(len(index), lambda start, stop: data.at(index[start:stop]).inputs)

    def __len__(self) -> int:
        return self._count

    def inputs(self, start: int, stop: int) -> Inputs:
        """The inputs of the samples `start` to `stop` − 1."""
        return self._read(start, stop)

    def for_model(self, model: nn.Module, *, pass_for_each_layer: bool = False) -> SampleBatches:
        """The samples as one batch if no operator of the model then returns more than 64 MiB, otherwise in batches of 16 MiB.

        A batch has at least one sample. The memory of one more sample is measured by running the model on two and on three.

        Args:
            model: that runs on the samples.
            pass_for_each_layer: whether several batches need a pass for each layer, as in `layer_by_layer` when all change;
                then one batch may take 512 MiB.
        """
        if self._count <= _PROBED[-1]:
            return SampleBatches(self, self._count)
        each = self._bytes_of_one(model)
        limit = _BYTES_INSTEAD_OF_PASSES if pass_for_each_layer else _BYTES_OF_ALL
        most = self._count if each * self._count <= limit else max(1, _BYTES_OF_A_BATCH // each)
        return SampleBatches(self, most)

    def most_together(self, model: nn.Module) -> int:
        """Of how many samples no operator of the model returns more than 512 MiB, so that one pass serves all layers."""
        return self._count if self._count <= _PROBED[-1] else max(1, _BYTES_INSTEAD_OF_PASSES // self._bytes_of_one(model))

    def _bytes_of_one(self, model: nn.Module) -> int:
        """By how many bytes the largest result of an operator grows with each sample, at least 1."""
        fewer, more = (_result_bytes(model, self._read(0, count)) for count in _PROBED)
        return max([1, *(b - a for a, b in zip(fewer, more, strict=False))])


class SampleBatches:
    """Calibration samples in batches of nearly equal sizes, which can be iterated over several times.

    Args:
        samples: the samples.
        most: largest number of samples in a batch.
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

    def few(self) -> Inputs:
        """Two samples, or one if there is no other: enough to see which layers run."""
        return self._samples.inputs(0, min(_PROBED[0], len(self._samples)))

    def most_together(self, model: nn.Module) -> int:
        """As that of the samples."""
        return self._samples.most_together(model)

    def rows_in_all(self, rows_in_first: int) -> int:
        """The number of rows in all batches, extrapolated from that in the first batch."""
        return rows_in_first * self.bounds[-1] // self.bounds[1]


class DrawnRows:
    """A random draw of the rows that a layer has over all batches, returned batch by batch.

    Args:
        numbers: ascending numbers of the drawn rows.
    """

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers
        self.given = 0  # number of drawn rows in the batches so far
        self._seen = 0

    @classmethod
    def draw(cls, total: int, count: int, seed: int) -> Self:
        """Draw `count` of `total` rows (or all, if there are fewer) without replacement. Equal seeds give equal rows."""
        if total <= _SHUFFLED:
            order = torch.randperm(total, generator=generator_from(seed), dtype=torch.int32)
            return cls(order[:count].sort().values.long())
        drawn = np.random.default_rng(seed).choice(total, min(count, total), replace=False, shuffle=False)
        return cls(torch.from_numpy(np.sort(drawn)))

    def next(self, rows: int) -> Tensor:
        """The drawn rows of the next batch, as row numbers within this batch, which has `rows` rows."""
        start, self._seen = self._seen, self._seen + rows
        stop = int(torch.searchsorted(self.numbers, self._seen))
        found = self.numbers[self.given : stop] - start
        self.given = stop
        return found


class _ResultBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """Records the size of each operator's result in bytes, in the order in which the operators run."""

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
    """The number of samples of a batch; an error is raised if its tensors have other shapes than those of the first batch."""
    shapes, due = ([tuple(tensor.shape) for tensor in tensors_of(inputs)] for inputs in (part, first))
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or () in lengths or [shape[1:] for shape in shapes] != [shape[1:] for shape in due]:
        message = f"calibration batches have different shapes: one has {shapes}, the first {due}"
        raise UserError("E131", message, "give samples of one shape")
    return shapes[0][0]
