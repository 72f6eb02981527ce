"""The values of an ONNX graph: tensors, sequences of tensors as tuples, and shape integers.

Shapes, and values computed from shapes, are Python integers, booleans and numbers in NumPy object arrays, so that a dynamic
batch axis stays dynamic when PyTorch traces the module, and sizes are known.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Integers: TypeAlias = npt.NDArray[
    np.object_
]  # elements are int, bool, float, and during a trace torch.SymInt, SymBool and SymFloat
Value: TypeAlias = Any  # a Tensor, Integers, a tuple of them, or None for a missing optional input
_MOST, _MOST_AXES = 64, 2


class _Typed(np.ndarray[Any, Any]):
    """Shape integers, or numbers from them, with the dtype that they have in the file, if that is not int64."""

    kind: torch.dtype

    def __deepcopy__(self, memo: dict[int, Any] | None, /) -> Any:
        """A copy with its dtype, which NumPy leaves out."""
        found: _Typed = super().__deepcopy__(memo).view(_Typed)
        found.__dict__.update(self.__dict__)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return _as_pickled, (self.tolist(), self.shape, self.__dict__)


def _as_pickled(items: Any, shape: tuple[int, ...], own: dict[str, Any]) -> _Typed:
    plain = np.empty(shape, dtype=object)
    plain[...] = items
    found = plain.view(_Typed)
    found.__dict__.update(own)
    return found


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


def typed(value: Value, kind: torch.dtype) -> Value:
    """Shape integers with the dtype that they have in the file; other values are returned as they are."""
    if not is_integers(value):
        return value
    plain = np.asarray(value)
    if kind == torch.int64:
        return plain
    if kind == torch.float32:  # rounded after each operator, as in the file
        plain = integers([_single(item) for item in plain.flat], plain.shape)
    found = plain.view(_Typed)
    found.kind = kind
    return found


def kind_of(value: Value) -> torch.dtype:
    """The dtype that a value has in the file."""
    if isinstance(value, Tensor):
        return value.dtype
    items = value.flatten().tolist()
    plain = torch.bool if items and all(isinstance(item, (bool, torch.SymBool)) for item in items) else torch.int64
    return getattr(value, "kind", plain)


def integers_of(value: Value) -> tuple[Any, ...]:
    """The integers of a value as a flat tuple."""
    return tuple(value.flat) if is_integers(value) else tuple(int(item) for item in value.flatten().tolist())


def tensor_of(value: Value, like: Tensor | None = None) -> Any:
    """A value as a tensor, on the device of `like` if it is one of shape integers; a sequence stays one, of tensors."""
    if isinstance(value, Tensor) or value is None:
        return value
    if isinstance(value, tuple):
        return tuple(tensor_of(part, like) for part in value)
    device, kind = None if like is None else like.device, kind_of(value)
    items = [bool(item) if isinstance(item, torch.SymBool) else item for item in value.flatten().tolist()]
    if any(isinstance(item, (torch.SymInt, torch.SymFloat)) for item in items):
        found = torch.stack([torch.scalar_tensor(item, dtype=kind, device=device) for item in items])
    else:
        found = torch.tensor(items, dtype=kind, device=device)
    return found.reshape(value.shape)


def _single(item: Any) -> Any:
    return float(np.float32(item)) if isinstance(item, float) else item


def simplified(tensor: Tensor, *, numbers: bool = False) -> Value:
    """A constant as shape integers if it is small and of type int64, int32 or one boolean, else the tensor itself.

    Args:
        tensor: the constant.
        numbers: also floating-point numbers, for a constant that only shapes are computed with.
    """
    whole = tensor.dtype in (torch.int64, torch.int32) or (tensor.dtype == torch.bool and tensor.numel() == 1)
    if (
        not (whole or (numbers and tensor.dtype in (torch.float32, torch.float64)))
        or tensor.ndim > _MOST_AXES
        or tensor.numel() > _MOST
    ):
        return tensor
    return typed(integers(tensor.flatten().tolist(), tuple(tensor.shape)), tensor.dtype)
