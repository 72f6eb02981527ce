"""Whether a training has made a value of a model, or its loss, infinite or NaN."""

from __future__ import annotations

import math

from torch import Tensor, nn

from mirabelle.model.state import tensors_of_module


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
        tensors = tensors_of_module(self._model).items()
        return [(name, tensor) for name, tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]


class DivergedError(Exception):
    """The loss or a weight is no longer finite."""


def finite(loss_sum: Tensor) -> float:
    """The value of a sum of losses.

    Raises:
        DivergedError: if it is not finite.
    """
    value = loss_sum.item()
    if not math.isfinite(value):
        raise DivergedError(f"the loss is {value}")
    return float(value)
