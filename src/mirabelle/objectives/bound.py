"""Terms bound to one model: modules that map a `Forward` to a scalar."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mirabelle.objectives.objective import Forward


class Bound(nn.Module):
    """A term without parameters of its own: a function of the `Forward`."""

    def __init__(self, loss: Callable[[Forward], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, forward: Forward) -> Tensor:
        return self.loss(forward)


class BoundObjective(nn.Module):
    """The weighted sum of bound terms."""

    def __init__(self, weights: list[float], terms: list[nn.Module]) -> None:
        super().__init__()
        self.weights = weights
        self.terms = nn.ModuleList(terms)

    def forward(self, forward: Forward) -> Tensor:
        parts = [weight * term(forward) for weight, term in zip(self.weights, self.terms, strict=True) if weight]
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]
