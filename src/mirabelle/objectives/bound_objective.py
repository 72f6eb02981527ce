"""Terms bound to one model: modules that map a `Forward` to a scalar."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mirabelle.model.taps import Taps
from mirabelle.records.schedules import Annealed, value_at
from mirabelle.task.batch import Batch, call, parts_of

if TYPE_CHECKING:
    from mirabelle.objectives.forward import Forward


class BoundFunction(nn.Module):
    """A term without parameters of its own: a function of the `Forward`."""

    def __init__(self, loss: Callable[[Forward], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, forward: Forward) -> Tensor:
        return self.loss(forward)


class BoundObjective(nn.Module):
    """The weighted sum of bound terms."""

    def __init__(self, weights: list[float | Annealed], terms: list[nn.Module]) -> None:
        super().__init__()
        self.weights = weights
        self.terms = nn.ModuleList(terms)
        self.student_layers = _layers(terms, "student_layers")
        self.teacher_layers = _layers(terms, "teacher_layers")

    def forward(self, forward: Forward) -> Tensor:
        weights = [value_at(weight, forward.progress) for weight in self.weights]
        parts = [weight * term(forward) for weight, term in zip(weights, self.terms, strict=True) if weight]
        if not parts:  # weights that are zero at the moment
            return 0.0 * torch.stack([part.float().sum() for part in parts_of(forward.outputs)]).sum()
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]

    def seen(self, model: nn.Module, batch: Batch, teacher: nn.Module | None = None) -> Forward:
        """A pass of a batch through the model and its teacher, with everything that the terms look at; as they stand.

        Args:
            model: that the terms are bound to, or a copy of it; with its gradients.
            batch: the inputs.
            teacher: runs without gradient; needed where a term looks at it.
        """
        from mirabelle.objectives.forward import Forward

        guide = None
        if teacher is not None:
            with torch.no_grad(), Taps(teacher, self.teacher_layers) as taps:
                guide = Forward(batch, call(teacher, batch.inputs), features=taps.taken())
        with Taps(model, self.student_layers) as taps:
            return Forward(batch, call(model, batch.inputs), guide, taps.taken())


def _layers(terms: list[nn.Module], side: str) -> tuple[str, ...]:
    """The layers that the terms look at, each once."""
    return tuple(dict.fromkeys(name for term in terms for name in getattr(term, side, ())))
