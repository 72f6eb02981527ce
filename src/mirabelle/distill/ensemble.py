"""Several teachers as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.task.batch import Outputs, as_outputs, parts_of


class Ensemble(nn.Module):
    """Σₖ wₖ · outputsₖ / Σₖ wₖ: the weighted mean of what several models give for the same inputs.

    Args:
        models: with outputs of one shape.
        weights: of each; by default all count the same.

    Raises:
        UserError: E110 for weights that are not above 0 and finite, E111 for another number of them than of models, and, when
            it runs, for outputs of different shapes.

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
            raise UserError("E111", f"{len(models)} models have {len(weights)} weights", "give one weight a model")
        if not all(weight > 0 and math.isfinite(weight) for weight in weights):
            raise UserError("E110", f"weights must be above 0; got {weights}", "leave out a model that should not count")
        self.models = nn.ModuleList(models)
        self.register_buffer("shares", torch.tensor(weights) / sum(weights))  # part of its state: other shares, another teacher

    def forward(self, *args: Any, **kwargs: Any) -> Outputs:
        outputs = [as_outputs(model(*args, **kwargs)) for model in self.models]
        if isinstance(outputs[0], Tensor):
            return self._mean(outputs)
        return tuple(self._mean(parts) for parts in zip(*map(parts_of, outputs), strict=True))

    def _mean(self, outputs: Sequence[Tensor]) -> Tensor:
        shapes = {tuple(part.shape) for part in outputs}
        if len(shapes) > 1:
            raise UserError(
                "E111", f"the teachers' outputs have shapes {sorted(shapes)}", "take teachers with the same classes"
            )
        total: Tensor = torch.einsum("k,k...->...", self.get_buffer("shares").to(outputs[0].dtype), torch.stack(list(outputs)))
        return total
