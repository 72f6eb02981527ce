"""A training in several processes: each takes a part of every batch, and their gradients are added up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mirabelle.errors import UserError
from mirabelle.model.state import tensors_of_module
from mirabelle.run.group import Group
from mirabelle.run.process_group import agreed, together
from mirabelle.task.batch import Batch, map_tensors
from mirabelle.task.samples import Arranged, Samples, Stream
from mirabelle.training.memory import Counts, counts_of
from mirabelle.training.sharded import ShardedGradients
from mirabelle.training.shards import is_shard, is_sharded

if TYPE_CHECKING:
    from mirabelle.objectives import Objective
    from mirabelle.objectives.bound_objective import BoundObjective
    from mirabelle.task.loss import Loss

ROUNDED_DIFFERENTLY = "processes on different processors have rounded differently; they go on with the weights of the first"
V = TypeVar("V")
_APART = 1_000_003  # between the seeds of random numbers, such as those of dropout, of two processes


def check_terms_of_processes(objective: Objective, count: int) -> None:
    """Raise E111 if several processes compute a term that remembers samples: each would remember others."""
    names = [type(term).__name__ for _, term in objective.terms if term.remembers_samples]
    if names and count > 1:
        message = f"{', '.join(names)} remembers every sample, and each of {count} processes sees a part of them"
        raise UserError("E111", message, "start a single process, or choose another term, such as RKD", path=("objective",))


@dataclass(frozen=True)
class Part:
    """The part of a batch that this process takes.

    Args:
        batch: the part.
        smallest: number of samples in the smallest part of any process.
    """

    batch: Batch
    smallest: int


class Processes:
    """The processes that compute a training: this one alone, or all of a group.

    Args:
        batch_size: of the whole batches.

    Raises:
        UserError: E111 if there are more processes than samples in a batch.
    """

    def __init__(self, batch_size: int) -> None:
        self.group: Group | None = together()
        self.rank, self.count = (0, 1) if self.group is None else (self.group.launch.rank, self.group.launch.count)
        if batch_size < self.count:
            message = f"batches of {batch_size:,} cannot be divided among {self.count} processes"
            raise UserError("E111", message, f"start at most {batch_size:,} processes, or give a larger batch_size")

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints."""
        return self.rank == 0

    @property
    def seed(self) -> int:
        """What is added to the seeds of this process; 0 in the first."""
        return self.rank * _APART

    def batches(
        self, data: Samples | Stream, batch_size: int, seed: int, first: int, arranged: Arranged | None
    ) -> Iterator[Part]:
        """The parts of this process in the batches of one epoch, from the `first` on; a stream starts its epoch again."""
        if isinstance(data, Stream):
            for batch in self.of_all(data.batches(batch_size)):
                yield self._part(batch)
            return
        shuffled = data.shuffled(batch_size, seed, arranged, part=(self.rank, self.count))
        for batch in data.taken(shuffled, first):
            yield Part(batch, shuffled.whole_size // self.count)

    def of_all(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of a loader in the first process, in all of them."""
        if self.group is None:
            yield from batches
            return
        while True:
            batch = agreed(lambda: next(batches, None))
            if batch is None:
                return
            yield batch

    def _part(self, batch: Batch) -> Part:
        if self.group is None:
            return Part(batch, len(batch))
        start, stop = len(batch) * self.rank // self.count, len(batch) * (self.rank + 1) // self.count
        inputs = map_tensors(batch.inputs, lambda tensor: tensor[start:stop])
        part = Batch(inputs, batch.targets[start:stop], None, batch.view)
        return Part(part, len(batch) // self.count)

    def counts(self, batch: Batch, loss: Loss) -> Counts | None:
        """What the whole batch has of all that means are taken over; None for a single process, which has all of it."""
        if self.group is None:
            return None
        samples, targets, places, tokens = self.group.sums(counts_of(batch, loss))
        return samples, targets, places, tokens

    def agreed(self, value: V) -> V:
        """The value of the first process."""
        return value if self.group is None else self.group.share(value)

    def any(self, here: bool) -> bool:  # noqa: FBT001 (a value, not an option)
        """Whether something is so in any process."""
        return here if self.group is None else self.group.any(here)

    def largest(self, here: int) -> int:
        """The largest number of all processes."""
        return here if self.group is None else max(self.group.share(self.group.gather(here)))

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over the processes."""
        return tensor if self.group is None else self.group.add(tensor.clone())

    def with_first_buffers(self, model: nn.Module) -> None:
        """Set the buffers of a model, such as the statistics of batch norms, to those of the first process."""
        self._with_first([buffer for buffer in model.buffers() if buffer.numel()])

    def with_first_weights(self, model: nn.Module) -> bool:
        """Set the weights of a model to those of the first process; return whether those of any process were others.

        Weights that are divided are the same in all processes, since each part has one place.
        Processes that compute on processors of different kinds may round differently.
        """
        if self.group is None:
            return False
        tensors = [tensor for tensor in tensors_of_module(model).values() if tensor.numel() and not is_shard(tensor)]
        before = [tensor.clone() for tensor in tensors]
        self._with_first(tensors)
        return self.any(not all(map(_equal, before, tensors)))

    @torch.no_grad()
    def _with_first(self, tensors: Sequence[Tensor]) -> None:
        if self.group is None:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault(tensor.dtype, []).append(tensor)
        for same in kinds.values():
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in same])
            torch.distributed.broadcast(flat, 0, group=self.group.reductions)
            if not self.leads:
                for tensor, part in zip(same, torch.split(flat, [tensor.numel() for tensor in same]), strict=True):
                    tensor.detach().copy_(part.view(tensor.shape))

    def reducing(self, model: nn.Module, loss: BoundObjective) -> Reducing | ShardedGradients:
        """What computes losses of a model so that the gradients of all processes are averaged."""
        if self.group is not None and is_sharded(model):
            return ShardedGradients(self.group, model, loss)
        return Reducing(self.group, model, loss)


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(), other.nan_to_num()) if one.is_floating_point() else torch.equal(one, other)


class _Called(nn.Module):
    """Calls a function; the modules are those whose parameters it uses."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.modules_of_function = nn.ModuleList(modules)

    def forward(self, function: Callable[[], Tensor]) -> Tensor:
        return function()


class Reducing:
    """Losses whose gradients torch's `DistributedDataParallel` averages over the processes; for a single one, just losses.

    Args:
        group: of the processes; None for a single one.
        model: in training.
        loss: bound to the model, with parameters of its own.
    """

    def __init__(self, group: Group | None, model: nn.Module, loss: nn.Module) -> None:
        self._wrapped: DistributedDataParallel | None = None
        if group is not None and any(one.requires_grad for module in (model, loss) for one in module.parameters()):
            self._wrapped = DistributedDataParallel(
                _Called(model, loss), process_group=group.reductions, forward_sync_buffers=False, find_unused_parameters=True
            )
        self._model, self._processes = model, 1 if group is None else group.launch.count

    def begin(self, progress: float) -> None:
        """Begin an optimizer step, at a progress of the training."""

    def number_of_parts(self, samples: int, size: int) -> int | None:
        """The number of parts that each process takes of a batch: equally many, since batch norms may exchange values in each.

        Args:
            samples: of the whole batch.
            size: most samples of a part.
        """
        count = self._processes
        return min(samples // count, -(-samples // (count * size)))

    def __call__(self, function: Callable[[], Tensor]) -> Tensor:
        """The loss that a function computes."""
        found: Tensor = function() if self._wrapped is None else self._wrapped(function)
        return found

    def apart(self, *, when: bool) -> AbstractContextManager[None]:
        """A context in which gradients of this process alone are added up, to be reduced with those that follow."""
        held: AbstractContextManager[None] = nullcontext()
        if when and self._wrapped is not None:
            held = self._wrapped.no_sync()
        return held

    def finish(self) -> None:
        """End the backward passes of an optimizer step."""

    def clip(self, limit: float) -> None:
        """Scale the gradients of the model so that their norm is at most `limit`."""
        nn.utils.clip_grad_norm_(self._model.parameters(), limit)
