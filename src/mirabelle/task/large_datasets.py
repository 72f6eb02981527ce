"""Data sets of others that are too large for the memory: their samples are read by number when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from mirabelle.errors import UserError, first_line, is_out_of_memory
from mirabelle.numerics.arrays import bytes_of
from mirabelle.numerics.draws import all_global_draws
from mirabelle.run.files import digest
from mirabelle.task.batch import Inputs, map_tensors, tensors_of
from mirabelle.task.indexed import IN_MEMORY, Indexed
from mirabelle.task.samples import check_targets, inputs_and_targets
from mirabelle.task.values import plain, plain_targets

_LOOKED_AT, _AT_ONCE = 16, 256  # samples by which data are identified, besides their targets; that are read together
_COMPARED, _MOST_VALUES = 64, 1000  # kept targets that are compared with those of samples; different values, each of which is
_CHANGES = ("target_transform", "transforms")  # attributes that say that targets are changed when they are read
_OF_TARGETS = ("targets", "labels")  # attributes of data sets of torchvision and others


def read_when_needed(source: Any, most: int | None = None) -> Indexed | None:
    """A data set with a length as samples that are read when they are needed; None if its inputs fit into memory.

    Random changes, such as those of augmentation, are drawn by the number of the sample, so that it is the same every time.

    Args:
        source: `source[k]` is (inputs, targets), or a dict that has targets.
        most: bytes of inputs in memory; by default 1 GiB.

    Raises:
        UserError: E131 if a sample cannot be read.
    """
    limit = IN_MEMORY if most is None else most
    try:
        count = len(source)
        size = sum(one.nbytes for one in tensors_of(_inputs_of(source, [0]))) * count if count else 0
    except (TypeError, NotImplementedError, UserError):  # no length, or no first sample: told by who reads all of them
        return None
    if size <= limit:
        return None
    targets = _targets(source)
    few = np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(int).tolist()
    seen = [bytes_of(one) for one in tensors_of(_inputs_of(source, few))]
    identity = digest(type(source).__qualname__.encode(), str(count).encode(), *seen)
    return Indexed(lambda index: _inputs_of(source, index.tolist()), targets, identity)


def _inputs_of(source: Any, places: Sequence[int]) -> Inputs:
    inputs, _ = _batch(source, places)
    return map_tensors(inputs, lambda tensor: plain(tensor, "inputs"))


def _targets(source: Any) -> Tensor:
    """All targets: as the data set keeps them, or of all samples, read once."""
    kept = _kept_targets(source)
    if kept is not None:
        values, first = np.unique(kept.reshape(len(kept), -1).numpy(), axis=0, return_index=True)
        few = [*np.linspace(0, len(kept) - 1, min(len(kept), _COMPARED)).astype(int).tolist(), *first[:_MOST_VALUES].tolist()]
        if len(values) <= _MOST_VALUES and torch.equal(kept[few], _batch(source, few)[1]):
            return kept
    places = range(len(source))
    parts = [_batch(source, places[start : start + _AT_ONCE])[1] for start in range(0, len(places), _AT_ONCE)]
    return torch.cat(parts)


def _kept_targets(source: Any) -> Tensor | None:
    """The targets that a data set keeps beside its samples, unless it says that it changes them."""
    if any(getattr(source, name, None) is not None for name in _CHANGES):
        return None
    kept = next((getattr(source, name) for name in _OF_TARGETS if hasattr(source, name)), None)
    if not isinstance(kept, (Tensor, np.ndarray, list, tuple)) or len(kept) != len(source):
        return None
    try:
        return plain_targets(torch.as_tensor(kept))
    except (TypeError, ValueError, RuntimeError, UserError):  # such as words, which the samples number
        return None


def _batch(source: Any, places: Sequence[int]) -> tuple[Inputs, Tensor]:
    try:
        inputs, targets = inputs_and_targets(default_collate([_sample(source, place) for place in places]))
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        message = f"the data set raised {type(error).__name__}: {first_line(error)}"
        raise UserError("E131", message, "read all its samples in Python to see why") from error
    check_targets(targets)
    return inputs, plain_targets(targets)


def _sample(source: Any, place: int) -> Any:
    with all_global_draws(place):
        return source[place]
