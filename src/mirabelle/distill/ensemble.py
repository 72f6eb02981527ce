"""An ensemble of several teachers, used as one teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.task.batch import Outputs, as_outputs, parts_of


class Ensemble(nn.Module):
    """The weighted mean of the outputs of several models for the same inputs: Σₖ wₖ · outputsₖ / Σₖ wₖ.

    Args:
        models: models whose outputs have the same shape.
        weights: one weight for each model; by default all are equal.

    Raises:
        UserError: E110 if a weight is not finite and above 0, E111 if the numbers of weights and models differ, or, in a
            forward pass, if the outputs have different shapes.

    Example:
        >>> pair = Ensemble([nn.Identity(), nn.ReLU()], weights=[3.0, 1.0])
        >>> pair(torch.tensor([-4.0, 2.0]))
        tensor([-3.,  2.])

    Source: You, Xu, Xu, Tao 2017, "Learning from Multiple Teacher Networks", KDD; Hinton, Vinyals, Dean 2015, arXiv:1503.02531.
    """

    def __init__(self, models: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        weights = [1.0] * len(models) if weights is None else list(weights)
        if not models or len(weights) != len(models):
            message = f"an ensemble needs one weight for each model; got {len(models)} models, {len(weights)} weights"
            raise UserError("E111", message, "give at least one model, and one weight for each")
        if not all(weight > 0 and math.isfinite(weight) for weight in weights):
            raise UserError("E110", f"weights must be above 0; got {weights}", "leave out a model that should have no weight")
        self.models = nn.ModuleList(models)
        # A buffer, so that the weights are part of the state by which a teacher is identified.
        self.register_buffer("shares", torch.tensor(weights) / sum(weights))

    def forward(self, *args: Any, **kwargs: Any) -> Outputs:
        outputs = [as_outputs(model(*args, **kwargs)) for model in self.models]
        if isinstance(outputs[0], Tensor):
            return self._mean(outputs)
        return tuple(self._mean(parts) for parts in zip(*map(parts_of, outputs), strict=True))

    def _mean(self, outputs: Sequence[Tensor]) -> Tensor:
        shapes = {tuple(part.shape) for part in outputs}
        if len(shapes) > 1:
            raise UserError(
                "E111", f"the teachers' outputs differ in shape: {sorted(shapes)}", "use teachers with the same classes"
            )
        total: Tensor = torch.einsum("k,k...->...", self.get_buffer("shares").to(outputs[0].dtype), torch.stack(list(outputs)))
        return total
