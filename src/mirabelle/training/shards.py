"""Tensors that are divided among several processes along their first dimension, as torch's FSDP2 does: DTensors.

They are recognized by their methods, since importing torch's class takes a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_shard(tensor: Tensor) -> bool:
    """Whether this process holds only a part of a tensor."""
    return hasattr(tensor, "to_local")


def is_sharded(model: nn.Module) -> bool:
    """Whether a parameter of a model is divided among processes."""
    return any(map(is_shard, model.parameters()))


def own_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, on the same memory; the tensor itself if it is not divided.

    Example:
        >>> own_part(torch.ones(2))
        tensor([1., 1.])
    """
    given: Any = tensor.detach()
    part: Tensor = given.to_local() if is_shard(tensor) else given
    return part


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of a divided one, every process must ask for it."""
    given: Any = tensor
    found: Tensor = given.full_tensor() if is_shard(tensor) else given
    return found


def whole_for_first(tensors: Mapping[str, Tensor], *, leads: bool) -> dict[str, Tensor]:
    """All of some tensors for the first process, the divided ones on the CPU; every process must ask for them.

    One after the other is put together, so that a device holds no more than one.

    Args:
        tensors: the same in every process.
        leads: whether this is the first process; the others get those that are not divided.
    """
    found = {}
    for name, tensor in tensors.items():
        complete = whole(tensor)
        if not is_shard(tensor):
            found[name] = complete
        elif leads:
            found[name] = complete.cpu()
    return found


def as_shard(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has, divided as another one is, on the device of that.

    Args:
        tensor: all of it.
        like: a divided tensor of the same shape.
    """
    from torch.distributed.tensor import DTensor

    given: Any = like
    mesh = given.device_mesh
    parts = torch.chunk(tensor, mesh.size(), dim=0)
    rank = mesh.get_local_rank()
    part = parts[rank] if rank < len(parts) else tensor[:0]
    mine = torch.empty_like(given.to_local(), dtype=tensor.dtype).copy_(part)
    return DTensor.from_local(mine, mesh, given.placements, run_check=False, shape=like.shape, stride=like.stride())


def placed_as(tensor: Tensor, own: Tensor | None) -> Tensor:
    """A tensor that every process has, divided as the one of that name and shape that this process trains, if that is."""
    divided = own is not None and is_shard(own) and own.shape == tensor.shape
    return as_shard(tensor, own) if divided and own is not None else tensor
