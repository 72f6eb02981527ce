"""Tensors on any device to NumPy arrays and to bytes."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]


def to_numpy(tensor: Tensor) -> Array:
    """The values of a tensor as an array of the same shape and type; on the CPU it shares the tensor's memory.

    Args:
        tensor: on any device, with or without a gradient; of a type that NumPy has, which bfloat16 is not.

    Example:
        >>> to_numpy(torch.tensor([1.5, 2.0], requires_grad=True))
        array([1.5, 2. ], dtype=float32)
    """
    array: Array = tensor.detach().cpu().numpy()
    return array


def flat(tensor: Tensor) -> Tensor:
    """The values in one axis with stride 1; a single value that was expanded keeps a stride of 0 in `contiguous`.

    Example:
        >>> flat(torch.zeros(()).expand(1, 1)).stride()
        (1,)
    """
    return tensor.detach().contiguous().as_strided((tensor.numel(),), (1,))


def bytes_of(tensor: Tensor) -> bytes:
    """The bytes of a tensor's values, row by row, whatever its type and its layout in memory.

    Example:
        >>> bytes_of(torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).T)
        b'\\x01\\x03\\x02\\x04'
    """
    return to_numpy(flat(tensor).view(torch.uint8)).tobytes() if tensor.numel() else b""
