"""The precision in which a forward pass computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from mirabelle.model.device import CPU

_CONVOLUTIONS = {
    torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d
}  # fmt: skip
_VOLUME = 3  # spatial dimensions


@contextmanager
def autocast(precision: str, device: torch.device = CPU) -> Iterator[None]:
    """The context in which a model's forward pass computes in a precision.

    On the CPU, some convolutions compute in float32 all the same, since the gradients of their weights are wrong in bfloat16
    with torch 2.13 (oneDNN): parts of them are memory that was never written. These are convolutions with three spatial
    dimensions, and those whose input is smaller than their stride.

    Args:
        precision: "float32", which changes nothing, or "bfloat16" or "float16" for matrix products and convolutions.
        device: of the model.
    """
    if precision == "float32":
        yield
        return
    with (
        torch.autocast(device.type, getattr(torch, precision)),
        _ExactConvolutions() if device.type == "cpu" else nullcontext(),
    ):
        yield


class _ExactConvolutions(TorchFunctionMode):
    """Convolutions whose weights get wrong gradients in bfloat16 compute in float32."""

    def __torch_function__(self, func: Callable[..., Any], _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS and _is_wrong_in_bfloat16(args, kwargs):
            with torch.autocast("cpu", enabled=False):
                args, kwargs = pytree.tree_map_only(Tensor, Tensor.float, (args, kwargs))
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _is_wrong_in_bfloat16(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the gradient of a convolution's weight may hold memory that was never written."""
    given = dict(zip(("input", "weight", "bias", "stride"), args, strict=False)) | kwargs
    spatial, stride = given["weight"].ndim - 2, given.get("stride", 1)
    strides = (stride,) * spatial if isinstance(stride, int) else tuple(stride) * (spatial // len(stride))
    sizes = given["input"].shape[-spatial:]
    return spatial == _VOLUME or any(size < step for size, step in zip(sizes, strides, strict=True))
