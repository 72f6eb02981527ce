"""What flows along the edges of an ONNX graph: tensors, and integers that shapes are made of.

Shapes, and what is asked about them, stay Python integers and booleans in NumPy arrays of objects, so that a free batch axis
stays free when torch traces the module.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Integers: TypeAlias = npt.NDArray[np.object_]  # of int, bool, or torch.SymInt, which stands for an int while a module is traced
Value: TypeAlias = Any  # a Tensor, Integers, or None for an input that is left out
_MOST, _MOST_AXES = 64, 2


def is_integers(value: Value) -> bool:
    """Whether a value is integers rather than a tensor."""
    return isinstance(value, np.ndarray)


def integers(items: Any, shape: tuple[int, ...] | None = None) -> Integers:
    """Integers with a shape; by default one axis over a sequence, or none for a single one."""
    if not isinstance(items, (tuple, list)):
        items, shape = (items,), () if shape is None else shape
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return found if shape is None else found.reshape(shape)


def integers_of(value: Value) -> tuple[Any, ...]:
    """The integers of a value, in order."""
    return tuple(value.flat) if is_integers(value) else tuple(int(item) for item in value.flatten().tolist())


def tensor_of(value: Value, like: Tensor | None = None) -> Tensor:
    """A value as a tensor, integers as int64 on the device of `like`."""
    if isinstance(value, Tensor):
        return value
    device, items = None if like is None else like.device, value.flatten().tolist()
    kind = torch.bool if items and all(isinstance(item, bool) for item in items) else torch.int64
    if any(isinstance(item, torch.SymInt) for item in items):
        found = torch.stack([torch.scalar_tensor(item, dtype=kind, device=device) for item in items])
    else:
        found = torch.tensor(items, dtype=kind, device=device)
    return found.reshape(value.shape)


def simplified(tensor: Tensor) -> Value:
    """A constant as integers where it can be part of a shape, else as it is."""
    if tensor.dtype != torch.int64 or tensor.ndim > _MOST_AXES or tensor.numel() > _MOST:
        return tensor
    return integers(tensor.flatten().tolist(), tuple(tensor.shape))
