"""Data as users give them: tensors, arrays, tables, data sets and loaders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

from mirabelle.errors import UserError
from mirabelle.task.class_names import TARGETS
from mirabelle.task.large_datasets import read_when_needed
from mirabelle.task.samples import Samples, Stream, check_targets, inputs_and_targets, joined_samples
from mirabelle.task.values import as_inputs, as_targets


def data_of(source: Any) -> Samples | Stream:
    """Data from `(inputs, targets)` tensors or arrays, a `Dataset` with a length, one of Hugging Face, or a `DataLoader`.

    A tensor or an array alone, or a dict of them by the names of the inputs, is data without labels. Batches are
    (inputs, targets), or dicts with the targets under "labels", "label", "targets" or "target". A data set, and a loader in
    sequential order, are read into memory once; of a data set that would need more than 1 GiB, samples are read when they are
    needed, and have the same values every time. A loader that shuffles remains a stream, because its data set may augment.

    Raises:
        UserError: E131 if the source is none of these.
    """
    if isinstance(source, (Samples, Stream)):
        return source
    data = source.dataset if isinstance(source, DataLoader) else source
    if isinstance(data, IterableDataset) or (hasattr(data, "column_names") and not hasattr(data, "__len__")):
        raise UserError("E131", "an IterableDataset has no length", "give a Dataset that has one, or tensors")
    if isinstance(source, DataLoader):
        shuffles = type(source.batch_sampler) is not BatchSampler or not isinstance(source.sampler, SequentialSampler)
        if not shuffles:
            return joined_samples(list(Stream(source).batches(0)))
        return Stream(source)
    if isinstance(source, Dataset) or hasattr(source, "column_names"):
        return _of_data_set(source)
    if isinstance(source, Mapping) and any(name in source for name in TARGETS):
        source = inputs_and_targets(source)
    if isinstance(source, (tuple, list)) and len(source) == 2:  # noqa: PLR2004 (inputs and targets)
        return _pair(*source)
    if isinstance(source, Tensor) or hasattr(source, "__array__") or (isinstance(source, Mapping) and source):
        return Samples(as_inputs(source))
    raise UserError(
        "E131", f"data must be (inputs, targets), a Dataset or a DataLoader; got {type(source).__name__}", "give one of these"
    )


def _of_data_set(source: Any) -> Samples:
    if hasattr(source, "with_format") and hasattr(source, "column_names"):  # a data set of Hugging Face's `datasets`
        source = source.with_format("torch")
    return read_when_needed(source) or joined_samples(list(Stream(DataLoader(source, batch_size=256)).batches(0)))


def in_memory(source: Any) -> Samples:
    """Data as samples in memory; a stream is read once, in the order of its loader."""
    data = data_of(source)
    return joined_samples(list(data.batches(0))) if isinstance(data, Stream) else data


def _pair(inputs: Any, targets: Any) -> Samples:
    """Samples from inputs and targets of any kind; rows of tables must have the same names on both sides."""
    own, other = (getattr(part, "index", None) for part in (inputs, targets))
    if hasattr(own, "equals") and hasattr(other, "equals") and not own.equals(other):  # type: ignore[union-attr]
        message = "the rows of inputs and targets have different names (index), so they may not belong together"
        raise UserError("E131", message, "bring them into one order, or give x.to_numpy() and y.to_numpy()")
    found = as_targets(targets)
    check_targets(found)
    return Samples(as_inputs(inputs, len(found) if found.dim() else None), found)
