"""Trainings in less memory: a batch in parts whose gradients are added up, and activations that are computed again."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mirabelle.errors import is_out_of_memory
from mirabelle.model.device import device_of_job, free_bytes
from mirabelle.objectives.forward import Shares
from mirabelle.run.process_group import together
from mirabelle.run.run import Run
from mirabelle.task.batch import Batch, map_tensors
from mirabelle.task.loss import Loss, counted_places, counted_targets
from mirabelle.task.samples import Samples, Stream
from mirabelle.training.execution import Execution, fastest_execution, in_shards, unmeasured_precision

if TYPE_CHECKING:
    from mirabelle.task.task import Task
    from mirabelle.training.settings import Training

MICRO_BATCH = "micro_batch"  # the decision on the size of parts
_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_SHARE = 0.25  # of the memory of a device, for data that stay there
_FEWEST = 2  # blocks for which it pays
Counts: TypeAlias = tuple[float, float, float, float]  # of samples, targets, places and tokens, see `Shares`
Part: TypeAlias = tuple[Shares, Batch]


def free_memory(device: torch.device) -> None:
    """Give back what a step that has failed leaves on a device."""
    gc.collect()
    library: Any = getattr(torch, device.type, None)
    if hasattr(library, "empty_cache"):
        library.empty_cache()


def halved(micro_batch: int, run: Run) -> int:
    """Half of the size of parts, which the run records and is told."""
    smaller = (micro_batch + 1) // 2
    run.decide_anew(MICRO_BATCH, smaller)
    text = f"memory does not suffice for {micro_batch} samples: batches are taken in parts of at most {smaller}"
    run.event("warning", text=text)
    return smaller


def decided_execution(model: nn.Module, task: Task, training: Training, run: Run) -> tuple[Execution, int]:
    """The execution of a training, measured once in a run, and the size of the parts of its batches.

    Parts become smaller if memory does not suffice to measure it. For a model whose weights are divided among processes nothing
    is measured: the model may not fit the device.
    """
    whole = task.train.batch_size(training.batch_size)
    if training.shard and together() is not None:
        text = run.decide("execution", lambda: unmeasured_precision(training.precision, device_of_job(model)))
        return in_shards(Execution.parse(text)), int(run.decided(MICRO_BATCH) or training.micro_batch or whole)
    while True:
        micro_batch = int(run.decided(MICRO_BATCH) or training.micro_batch or whole)
        batch = task.example(min(training.batch_size, micro_batch))
        measure = partial(fastest_execution, model, batch, task.loss, training.precision, compiled=training.compile)
        try:
            return Execution.parse(run.decide("execution", lambda: str(measure()))), micro_batch  # noqa: B023 (called at once)
        except Exception as error:
            if not is_out_of_memory(error) or micro_batch == 1:
                raise
        free_memory(device_of_job(model))
        halved(micro_batch, run)


def on_device_if_they_fit(data: Samples | Stream, device: torch.device) -> Samples | Stream:
    """Data in memory that need no more than a quarter of what is free on a device, on this device; others as they are."""
    fits = isinstance(data, Samples) and data.nbytes < _SHARE * free_bytes(device)
    return data.on(device) if isinstance(data, Samples) and fits else data


def parts_of_batch(batch: Batch, size: int, loss: Loss, counts: Counts | None = None, number: int | None = None) -> list[Part]:
    """A batch in parts of at most `size` samples, each with its shares in means over the batch.

    Args:
        batch: the batch.
        size: most samples of a part.
        loss: of the task.
        counts: of a larger batch of which this one is a part, by default of the batch itself.
        number: of parts of nearly equal sizes, instead of a size.

    Example:
        >>> from mirabelle.task.loss import cross_entropy
        >>> batch = Batch(torch.zeros(4, 1), torch.tensor([0, 1, -100, -100]))
        >>> [(shares.targets, shares.samples, len(part)) for shares, part in parts_of_batch(batch, 3, cross_entropy)]
        [(1.0, 0.75, 3), (0.0, 0.25, 1)]
    """
    count = len(batch)
    if size >= count and counts is None:
        return [(Shares(), batch)]
    counts = counts or counts_of(batch, loss)
    found = []
    starts = range(0, count, size) if number is None else [count * k // number for k in range(number)]
    for start, stop in itertools.pairwise([*starts, count]):
        inputs = map_tensors(batch.inputs, lambda tensor: tensor[start:stop])  # noqa: B023 (called at once)
        index = None if batch.index is None else batch.index[start:stop]
        part = Batch(inputs, batch.targets[start:stop], index, batch.view)
        found.append((shares_of(counts_of(part, loss), counts), part))
    return found


def counts_of(batch: Batch, loss: Loss) -> Counts:
    """What a batch has of all that means are taken over: the samples, targets, places and tokens of `Shares`.

    Args:
        batch: the batch.
        loss: of the task.
    """
    count, targets, inputs = float(len(batch)), batch.targets, batch.inputs
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    tokens = count if mask is None else float(mask.bool().sum())
    return count, counted_targets(loss, targets), counted_places(loss, targets), tokens


def shares_of(part: Counts, whole: Counts) -> Shares:
    """The shares of a part in a whole; where nothing counts in the whole, that of the samples.

    Example:
        >>> shares_of((2.0, 1.0, 2.0, 2.0), (4.0, 2.0, 4.0, 0.0))
        Shares(samples=0.5, targets=0.5, places=0.5, tokens=0.5)
    """
    samples = part[0] / whole[0]
    return Shares(*(own / all_of_them if all_of_them else samples for own, all_of_them in zip(part, whole, strict=True)))


@contextmanager
def as_before(*modules: nn.Module) -> Iterator[None]:
    """A context after which modules have the tensors and plain attributes that they had before."""
    tensors = [(one, one.detach().clone()) for module in modules for one in (*module.parameters(), *module.buffers())]
    parts = [part for module in modules for part in module.modules()]
    plain = [(part, {key: value for key, value in vars(part).items() if not isinstance(value, dict)}) for part in parts]
    buffers = [(part, dict(part._buffers)) for part in parts]
    try:
        yield
    finally:
        for part, values in plain:
            vars(part).update(values)
        for part, held in buffers:
            part._buffers.update(held)
        with torch.no_grad():
            for one, value in tensors:
                one.copy_(value)


def blocks_to_recompute(model: nn.Module) -> list[nn.Module]:
    """The blocks whose activations are computed again in the backward pass: the members of the lists of modules.

    Of lists within lists the outer ones count, since a block that is computed again computes its parts again. A list of a
    single member, or of members without parameters, is no list of blocks.
    """
    found: list[nn.Module] = []
    inside: set[int] = set()
    for module in model.modules():
        if id(module) in inside or not isinstance(module, _LISTS):
            continue
        members = [one for one in module.children() if any(True for _ in one.parameters())]
        if len(members) < _FEWEST or (module is model and all(not any(True for _ in one.children()) for one in members)):
            continue
        found += members
        inside |= {id(part) for member in members for part in member.modules()}
    return found


@contextmanager
def recomputing(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """A context in which forward passes keep the inputs of blocks alone, and backward passes compute the blocks again.

    Random numbers and buffers are the same in both, and buffers, such as statistics of batch norms, are updated once, so the
    result is the same to the bit.
    """
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_recomputed(block))
        yield


@contextmanager
def _recomputed(block: nn.Module) -> Iterator[None]:
    own, had = block.forward, "forward" in vars(block)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return own(*args, **kwargs)
        before = [
            (module._buffers, name, buffer.clone())
            for module in block.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        return checkpoint(own, *args, use_reentrant=False, context_fn=partial(_contexts, before), **kwargs)

    block.forward = forward
    try:
        yield
    finally:
        if had:
            block.forward = own
        else:
            del block.forward


Held = list[tuple[dict[str, Any], str, Tensor]]  # buffers of a module, the name of one of them, and a value of it


def _contexts(before: Held) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of the forward pass, and of the one that is computed again."""
    return nullcontext(), _as_before(before)


@contextmanager
def _as_before(before: Held) -> Iterator[None]:
    """A context in which buffers are as they were before the forward pass; what is computed again changes copies of them."""
    now = [held[name] for held, name, _ in before]
    try:
        for held, name, value in before:
            held[name] = value
        yield
    finally:
        for (held, name, _), buffer in zip(before, now, strict=True):
            held[name] = buffer
