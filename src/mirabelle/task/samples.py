"""Data as indexed samples in memory or as a stream of batches.

`Samples` are data in memory, with an index for each sample. Their order depends on (seed, epoch) only, so that a cache of
teacher outputs, a resumed run and a paired test refer to the same samples. A `Stream` is a loader that shuffles by itself. It
can be used for everything except caching and bit-exact resuming.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from mirabelle.errors import UserError, first_line, is_out_of_memory
from mirabelle.numerics.arrays import to_numpy
from mirabelle.numerics.draws import generator_from
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.task.batch import Batch, Inputs, map_tensors, on_device, tensors_of
from mirabelle.task.class_names import TARGETS
from mirabelle.task.reading_cost import Reading
from mirabelle.task.values import plain, plain_targets

Arranged: TypeAlias = Callable[[Tensor, int, torch.Generator], Tensor]  # see `Samples.shuffled`


class Samples:
    """Data in memory, indexed from 0.

    Args:
        inputs: a tensor, or a tuple or dict of tensors, each (samples, ...).
        targets: (samples, ...); None for data without labels.

    Example:
        >>> samples = Samples(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 0]))
        >>> samples.at(torch.tensor([2])).inputs
        tensor([[4., 5.]])
        >>> Samples(torch.zeros(3, 2)).labelled
        False
    """

    def __init__(self, inputs: Inputs, targets: Tensor | None = None) -> None:
        self.labelled = targets is not None
        if targets is None:
            targets = torch.zeros(len(next(iter(tensors_of(inputs)), ())), 0)
        check_targets(targets)
        parts = {"inputs": tensors_of(inputs), "targets": [targets]}
        for what, tensors in parts.items():
            if any(not tensor.dim() for tensor in tensors):
                raise UserError(
                    "E131", f"the {what} are a single number", "give one row for each sample, also for a single one"
                )
        lengths = {len(tensor) for tensors in parts.values() for tensor in tensors}
        if len(lengths) != 1 or not len(targets):
            raise UserError(
                "E131", f"inputs and targets must have the same length, above 0; got {sorted(lengths)}", "check the data"
            )
        for what, tensors in parts.items():
            for tensor in tensors:
                check_finite(tensor, what)
        self.inputs = inputs
        self.targets = targets
        self._known: tuple[tuple[int, ...], str] | None = None  # versions of the tensors, and their digest

    def __len__(self) -> int:
        return len(self.targets)

    def at(self, index: Tensor) -> Batch:
        return Batch(map_tensors(self.inputs, lambda tensor: tensor[index]), self.targets[index], index)

    def first(self, count: int) -> Batch:
        return self.at(torch.arange(min(count, len(self))))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All samples in order, in batches that are views of the data: nothing is copied."""
        for start in range(0, len(self), batch_size):
            yield self.between(start, start + batch_size)

    def between(self, start: int, stop: int) -> Batch:
        """The samples from `start` up to `stop`, or to the end, as views of the data."""
        count = min(stop, len(self)) - start
        inputs = map_tensors(self.inputs, partial(torch.narrow, dim=0, start=start, length=count))
        return Batch(inputs, self.targets[start : start + count], torch.arange(start, start + count))

    def split(self, fraction: float, seed: int) -> tuple[Samples, Samples]:
        """Split off a random `fraction` of the samples: (the other samples, the fraction). Equal seeds give equal splits."""
        held, order = self._held(fraction), self.order(seed)
        return self._of(self.at(order[held:])), self._of(self.at(order[:held]))

    def _held(self, fraction: float) -> int:
        """The number of samples that are split off."""
        if len(self) == 1:
            raise UserError("E131", "a single sample cannot be split", "give `validation`, or more training samples")
        return max(1, int(fraction * len(self)))

    def drawn(self, count: int, seed: int) -> Samples:
        """Draw `count` samples (or all, if there are fewer) without replacement. Equal seeds give equal samples."""
        return self._of(self.at(self.order(seed)[:count]))

    def order(self, seed: int) -> Tensor:
        """The indices of all samples in a random order. Equal seeds give equal orders."""
        return torch.randperm(len(self), generator=generator_from(seed))

    def against(self, targets: Tensor) -> Samples:
        """The same inputs with the outputs of a model as targets; the digest depends on the inputs only."""
        other = Samples(self.inputs, targets)
        other.labelled = False
        return other

    def with_targets(self, change: Callable[[Tensor], Tensor]) -> Samples:
        """The same inputs with changed targets."""
        return self._of(Batch(self.inputs, change(self.targets)))

    def ignoring(self, target: int) -> Samples:
        """The same samples with targets of −100 in place of `target`, such as 255 in masks of images."""
        return self.with_targets(lambda targets: targets.masked_fill(targets == target, UNLABELLED))

    def on(self, device: torch.device) -> Samples:
        """The same samples with their tensors on a device, from which batches are taken without a copy from the CPU."""
        found = copy.copy(self)
        found.inputs, found.targets = on_device(self.inputs, device), self.targets.to(device)
        return found

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.nbytes for tensor in (*tensors_of(self.inputs), self.targets))

    def reading(self) -> Reading:
        """How the samples are read, and what it costs."""
        return Reading("memory", self.nbytes)

    def _of(self, batch: Batch) -> Samples:
        """A batch of these samples as samples of their own."""
        found = Samples(batch.inputs, batch.targets)
        found.labelled = self.labelled
        return found

    def steps(self, batch_size: int) -> int:
        """The number of batches in an epoch of training, which are full, or have all samples if there are fewer."""
        return len(self) // self.batch_size(batch_size)

    def batch_size(self, asked: int) -> int:
        """The size of the batches in training: as asked, or all samples if there are fewer."""
        return min(asked, len(self))

    def shuffled(
        self, batch_size: int, seed: int, arranged: Arranged | None = None, *, part: tuple[int, int] = (0, 1)
    ) -> Shuffled:
        """Full batches of the samples, in an order that depends on the seed only.

        Args:
            batch_size: number of samples in a batch; all samples if there are fewer.
            seed: of the order.
            arranged: (indices of the samples of full batches, batch size, generator) -> the same indices in another order.
            part: (k, count): of each batch, the k-th of `count` parts, from 0.
        """
        return Shuffled(self, batch_size, seed, arranged, part=part)

    def taken(self, shuffled: Shuffled, first: int) -> Iterator[Batch]:
        """The batches of an epoch of these samples from the `first` on."""
        for k in range(first, len(shuffled)):
            yield shuffled[k]

    def digest(self) -> str:
        """A digest of all values, sixteen hexadecimal digits; it is computed again only if a tensor has changed."""
        tensors = self._identifying_tensors()
        versions = tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)
        if self._known is None or self._known[0] != versions:
            self._known = (versions, self._computed_digest())
        return self._known[1]

    def _identifying_tensors(self) -> tuple[Tensor, ...]:
        """The tensors that identify these data; targets from a model are left out, because they follow from the inputs."""
        return (*tensors_of(self.inputs), *((self.targets,) if self.labelled else ()))

    def _computed_digest(self) -> str:
        total = hashlib.blake2b(digest_size=8)
        for tensor in self._identifying_tensors():
            total.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            total.update(np.ascontiguousarray(to_numpy(tensor)).data)
        return total.hexdigest()


class Shuffled:
    """One epoch of shuffled samples: `self[k]` is its k-th batch, so that a resumed run can continue within the epoch.

    Attributes:
        whole_size: number of samples in a batch.
        batch_size: number of those in the part of each batch that is taken; all of them without other parts.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        seed: int,
        arranged: Arranged | None = None,
        *,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self._samples, generator = samples, generator_from(seed)
        size = self.whole_size = samples.batch_size(batch_size)
        self._count = samples.steps(size)
        order = torch.randperm(len(samples), generator=generator)[: self._count * size]
        order = order if arranged is None else arranged(order, size, generator)
        rank, count = part
        first, last = size * rank // count, size * (rank + 1) // count
        self.batch_size = last - first
        self._order = order if count == 1 else order.view(self._count, size)[:, first:last].flatten()

    def __len__(self) -> int:
        return self._count

    def indices(self, start: int, stop: int) -> Tensor:
        """The samples at some places of the epoch."""
        return self._order[start:stop]

    def __getitem__(self, k: int) -> Batch:
        if not 0 <= k < len(self):  # ends a loop over the epoch
            raise IndexError(k)
        return self._samples.at(self.indices(k * self.batch_size, (k + 1) * self.batch_size))


class Stream:
    """Batches of (inputs, targets) from a loader that determines their order; targets become int64 or float32."""

    def __init__(self, loader: DataLoader[Any], change: Callable[[Tensor], Tensor] = plain_targets) -> None:
        self.loader = loader
        self._change = change  # of the targets of each batch

    def __len__(self) -> int:
        return len(self.loader.dataset)  # type: ignore[arg-type]

    def reading(self) -> Reading:
        """How the samples are read: by the loader, in a time that is not known."""
        return Reading("source", 0)

    def steps(self, batch_size: int) -> int:
        """The number of batches in an epoch of training; the loader's own batch size applies."""
        del batch_size
        return len(self.loader)

    def batch_size(self, asked: int) -> int:
        """The size of the loader's batches, as far as it says; otherwise as asked."""
        return self.loader.batch_size or asked

    @property
    def ends_with_one(self) -> bool:
        """Whether the last batch of each epoch, and no other, has a single sample; False if the loader does not say."""
        size, sampler = self.loader.batch_size, self.loader.batch_sampler
        known = size is not None and type(sampler) is BatchSampler and not self.loader.drop_last
        return known and size != 1 and len(self.loader.sampler) % size == 1  # type: ignore[arg-type, operator]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The batches of the loader; its own batch size applies."""
        del batch_size
        for given in _read(self.loader):
            inputs, targets = inputs_and_targets(given)
            check_targets(targets)
            yield Batch(map_tensors(inputs, _plain_inputs), self._change(targets))

    def with_targets(self, change: Callable[[Tensor], Tensor]) -> Stream:
        """The same loader with changed targets."""
        return Stream(self.loader, lambda targets: change(plain_targets(targets)))

    def first(self, count: int) -> Batch:
        collected: list[Batch] = []
        for batch in self.batches(count):
            collected.append(batch)
            if sum(map(len, collected)) >= count:
                break
        joined = joined_samples(collected)
        return joined.at(torch.arange(min(count, len(joined))))

    def drawn(self, count: int, seed: int) -> Samples:
        """The first `count` samples of the loader; the seed is ignored, because the loader shuffles by its own."""
        del seed
        first = self.first(count)
        return Samples(first.inputs, first.targets)


def _read(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches of a loader; what the user's data set raises is an error of the data."""
    try:
        yield from loader
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        message = f"the data set or its loader raised {type(error).__name__}: {first_line(error)}"
        raise UserError("E131", message, "read all its samples in Python to see why") from error


def inputs_and_targets(given: Any) -> tuple[Inputs, Tensor]:
    """(inputs, targets) from a batch of a loader."""
    if isinstance(given, Mapping):
        name = next((name for name in TARGETS if name in given), None)
        others = {key: part for key, part in given.items() if key != name}
        if name is not None and others:
            return others if len(others) > 1 else next(iter(others.values())), given[name]
        raise UserError(
            "E131",
            f"a batch is a dict of {', '.join(map(str, given))}, and has no targets or no inputs",
            f"name the targets {' or '.join(TARGETS)}, and give at least one input next to them",
        )
    if isinstance(given, (tuple, list)) and len(given) == 2:  # noqa: PLR2004
        return given[0], given[1]
    raise UserError("E131", f"a batch is a {type(given).__name__}", "let the loader yield (inputs, targets), or a dict")


def check_targets(targets: Any) -> None:
    """Raise E131 if a sample has several targets, in a tuple, list or dict, or targets are no tensor."""
    if isinstance(targets, Tensor):
        return
    if isinstance(targets, (tuple, list)) and targets and isinstance(targets[0], str):
        raise UserError("E131", "the targets of a batch are words", "number the classes from 0 in the data set")
    several = isinstance(targets, (tuple, list, Mapping))
    given = f"a {type(targets).__name__} of {len(targets)}" if several else type(targets).__name__
    remedy = "join the targets of a sample into one tensor, (samples, numbers), and name a loss that takes them apart"
    raise UserError("E131", f"targets must be one tensor; got {given}", remedy if several else "give a tensor or an array")


def check_finite(tensor: Tensor, what: str, index: Tensor | None = None) -> None:
    """Raise E131 for NaN or infinite values; the minimum and the maximum are NaN if any value is, and nothing is copied.

    Args:
        tensor: one row for each sample.
        what: its name in the message.
        index: of the samples; None for all of them.
    """
    if not tensor.is_floating_point() or not tensor.numel() or all(bool(torch.isfinite(one)) for one in torch.aminmax(tensor)):
        return
    wrong = ~torch.isfinite(tensor.reshape(len(tensor), -1)).all(1)
    first = int(wrong.nonzero()[0])
    first = first if index is None else int(index[first])
    message = f"the {what} contain NaN or infinite values in {int(wrong.sum()):,} of {len(tensor):,} samples"
    raise UserError("E131", f"{message}, first in sample {first}", "clean the data before compressing")


def _plain_inputs(tensor: Tensor) -> Tensor:
    return plain(tensor, "inputs")


def joined_samples(batches: list[Batch]) -> Samples:
    """The samples of all batches, in their order."""
    if not batches:
        raise UserError("E131", "the loader yields no batch", "give at least one sample")
    flat = [tensors_of(batch.inputs) for batch in batches]
    columns = iter([torch.cat(parts) for parts in zip(*flat, strict=True)])
    inputs = map_tensors(batches[0].inputs, lambda _: next(columns))
    return Samples(inputs, torch.cat([batch.targets for batch in batches]))
