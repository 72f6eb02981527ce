"""The module that replaces a dropped residual layer."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from torch import nn

from mirabelle.model.replacement import Replacement


class Skipped(Replacement):
    """Replaces a dropped residual layer: returns its first argument, x instead of x + f(x).

    Args:
        outputs: length of the tuple that the dropped layer returned, of which all but the first become None; 0 if it returned a
            single tensor.

    Example:
        >>> import torch
        >>> Skipped(outputs=2)(torch.ones(1), mask=None)
        (tensor([1.]), None)
    """

    drops: ClassVar[bool] = True

    def __init__(self, outputs: int = 0) -> None:
        super().__init__({"outputs": outputs})
        self.outputs = outputs

    @classmethod
    def from_dense(cls, dense: nn.Module, **settings: Any) -> Self:
        del dense
        return cls(**settings)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else next(iter(kwargs.values()))
        return (first, *[None] * (self.outputs - 1)) if self.outputs else first
