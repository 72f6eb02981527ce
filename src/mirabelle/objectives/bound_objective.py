"""Loss terms bound to one model: modules that map a `Forward` to a scalar loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mirabelle.model.taps import Taps
from mirabelle.numerics.selections import nothing
from mirabelle.records.schedules import Annealed, value_at
from mirabelle.task.batch import Batch, call, parts_of

if TYPE_CHECKING:
    from mirabelle.objectives.forward import Forward, MeanOver


class BoundFunction(nn.Module):
    """A bound term that has no parameters of its own: it calls a function of the `Forward`."""

    def __init__(self, loss: Callable[[Forward], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, forward: Forward) -> Tensor:
        return self.loss(forward)


class BoundObjective(nn.Module):
    """The weighted sum of bound terms, a scalar.

    Args:
        weights: one weight for each term; an `Annealed` weight is evaluated at the progress of the training.
        terms: the bound terms; a term with weight 0 is not computed.
        means: what each term is a mean over, so that the losses of the parts of a batch add up to that of the batch.

    Attributes:
        in_lockstep: whether the backward pass goes through the same layers in all processes, also where nothing in the part of
            one of them counts for a term, and through all layers, also if terms read none of the outputs.
    """

    def __init__(self, weights: list[float | Annealed], terms: list[nn.Module], means: list[MeanOver]) -> None:
        super().__init__()
        self.weights, self.means = weights, means
        self.terms = nn.ModuleList(terms)
        self.student_layers = _layers(terms, "student_layers")
        self.teacher_layers = _layers(terms, "teacher_layers")
        self.in_lockstep = False

    def reads_outputs(self, progress: float) -> bool:
        """Whether a term that counts at this progress reads the outputs of the model: one that names no layers."""
        pairs = zip(self.weights, self.terms, strict=True)
        return any(value_at(weight, progress) and not getattr(term, "student_layers", ()) for weight, term in pairs)

    def forward(self, forward: Forward) -> Tensor:
        at_present = [value_at(weight, forward.progress) for weight in self.weights]
        weights = [weight * forward.shares.of(mean) for weight, mean in zip(at_present, self.means, strict=True)]
        parts = [weight * term(forward) for weight, term in zip(weights, self.terms, strict=True) if weight]
        if not parts:  # all weights are zero at this progress, or nothing in this part counts
            parts = [torch.stack([nothing(part.float()) for part in parts_of(forward.outputs)]).sum()]
        left_out = any(own and not weight for own, weight in zip(at_present, weights, strict=True))
        if self.in_lockstep and (left_out or not self.reads_outputs(forward.progress)):
            seen = [*parts_of(forward.outputs), *forward.features.values()]
            parts.append(torch.stack([nothing(part.float()) for part in seen]).sum())
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]

    def seen(self, model: nn.Module, batch: Batch, teacher: nn.Module | None = None) -> Forward:
        """Run a batch through the model and its teacher, and collect everything that the terms read.

        Both models run in their present mode (training or evaluation).

        Args:
            model: the model that the terms are bound to, or a copy of it; it runs with gradients.
            batch: the inputs.
            teacher: runs without gradients; required if a term needs a teacher.
        """
        from mirabelle.objectives.forward import Forward

        guide = None
        if teacher is not None:
            with torch.no_grad(), Taps(teacher, self.teacher_layers) as taps:
                guide = Forward(batch, call(teacher, batch.inputs), features=taps.taken())
        with Taps(model, self.student_layers) as taps:
            return Forward(batch, call(model, batch.inputs), guide, taps.taken())


def _layers(terms: list[nn.Module], side: str) -> tuple[str, ...]:
    """The names of the layers whose outputs the terms read, without duplicates."""
    return tuple(dict.fromkeys(name for term in terms for name in getattr(term, side, ())))
