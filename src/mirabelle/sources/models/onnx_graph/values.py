"""The values of an ONNX graph: tensors, and shape integers.

Shapes, and values computed from shapes, are Python integers and booleans in NumPy object arrays, so that a dynamic batch axis
stays dynamic when PyTorch traces the module.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Integers: TypeAlias = npt.NDArray[np.object_]  # elements are int, bool, or torch.SymInt during a trace
Value: TypeAlias = Any  # a Tensor, Integers, or None for a missing optional input
_MOST, _MOST_AXES = 64, 2


def is_integers(value: Value) -> bool:
    """Whether a value is an array of shape integers, not a tensor."""
    return isinstance(value, np.ndarray)


def integers(items: Any, shape: tuple[int, ...] | None = None) -> Integers:
    """An array of shape integers; by default a sequence has one axis, and a single integer none."""
    if not isinstance(items, (tuple, list)):
        items, shape = (items,), () if shape is None else shape
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return found if shape is None else found.reshape(shape)


def integers_of(value: Value) -> tuple[Any, ...]:
    """The integers of a value as a flat tuple."""
    return tuple(value.flat) if is_integers(value) else tuple(int(item) for item in value.flatten().tolist())


def tensor_of(value: Value, like: Tensor | None = None) -> Tensor:
    """A value as a tensor; shape integers become int64 (or bool) on the device of `like`."""
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
    """A constant as shape integers if it is a small int64 tensor, else the tensor itself."""
    if tensor.dtype != torch.int64 or tensor.ndim > _MOST_AXES or tensor.numel() > _MOST:
        return tensor
    return integers(tensor.flatten().tolist(), tuple(tensor.shape))
