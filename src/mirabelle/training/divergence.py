"""Whether a training has made a value of a model, or its loss, infinite or NaN."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.model.state import tensors_of_module
from mirabelle.training.shards import own_part


class NewlyNotFinite:
    """Finds values that became infinite or NaN after this object was made.

    Values that were not finite before count only if they change: a causal mask of −inf is part of a model that works.

    Args:
        model: the model before the training.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1)
        >>> model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        >>> found = NewlyNotFinite(model)
        >>> found.any()
        False
        >>> with torch.no_grad():
        ...     _ = model.weight.fill_(torch.nan)
        >>> found.any()
        True
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = {name: tensor.clone() for name, tensor in self._tensors() if not tensor.isfinite().all()}

    def any(self) -> bool:
        """Whether a parameter or buffer of the model has such a value."""
        return any(self._found(name, tensor) for name, tensor in self._tensors())

    def _found(self, name: str, tensor: Tensor) -> bool:
        changed = ~tensor.isfinite()
        if (before := self._before.get(name)) is not None:
            changed &= (tensor != before) & ~(tensor.isnan() & before.isnan())
        return bool(changed.any())

    def _tensors(self) -> list[tuple[str, Tensor]]:
        tensors = [(name, own_part(tensor)) for name, tensor in tensors_of_module(self._model).items()]
        return [(name, tensor) for name, tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]


class DivergedError(Exception):
    """The loss or a weight is no longer finite."""


def diverged(why: str, lr: float, kept: str) -> UserError:
    """The E201 error for a training that has diverged.

    Args:
        why: where and how.
        lr: learning rate.
        kept: the step whose weights are left.
    """
    message = f"training diverged in {why} at lr = {lr:g}; rolled back to the last finite weights, of {kept}"
    return UserError("E201", message, f"start again in another folder with lr = {lr / 10:g}, a warmup, or clip = 1.0")


def sum_of_losses(value: float, device: torch.device) -> Tensor:
    """A sum on a device, to which losses are added, in the largest floating-point type that the device has."""
    exact = torch.float64 if device.type != "mps" else torch.float32
    return torch.tensor(value, dtype=exact).to(device)


def finite(loss_sum: Tensor) -> float:
    """The value of a sum of losses.

    Raises:
        DivergedError: if it is not finite.
    """
    value = loss_sum.item()
    if not math.isfinite(value):
        raise DivergedError(f"the loss is {value}")
    return float(value)
