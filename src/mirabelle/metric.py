"""What a model is judged by: one score a sample, higher = better, so that intervals and paired tests are honest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mirabelle.errors import UserError, did_you_mean
from mirabelle.numerics.statistics import Scores, mean_interval
from mirabelle.profile import Metric as Measured


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the class of highest score is the target, (batch,).

    Args:
        outputs: scores, (batch, classes).
        targets: class indices, (batch,).
    """
    return (outputs.argmax(dim=-1) == targets).float()


def negative_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """−mean((output − target)²) of each sample, (batch,); higher = better."""
    return -(outputs - targets.reshape(outputs.shape)).square().flatten(1).mean(dim=1)


_KNOWN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "accuracy": accuracy,
    "negative_squared_error": negative_squared_error,
}


@dataclass(frozen=True)
class Metric:
    """A name and a function (outputs, targets) -> one score a sample, (batch,), higher = better."""

    name: str
    scores: Callable[[Tensor, Tensor], Tensor]

    @staticmethod
    def of(metric: str | Callable[[Tensor, Tensor], Tensor] | Metric) -> Metric:
        """A metric by name, or from a function of the user's.

        Raises:
            UserError: E110 when the name is not known.
        """
        if isinstance(metric, Metric):
            return metric
        if not isinstance(metric, str):
            return Metric(getattr(metric, "__name__", type(metric).__name__), metric)
        if metric not in _KNOWN:
            raise UserError("E110", f'metric "{metric}" is not known', did_you_mean(metric, _KNOWN))
        return Metric(metric, _KNOWN[metric])

    def measured(self, scores: Scores) -> Measured:
        """The mean of per-sample scores with its 95 % interval."""
        mean, low, high = mean_interval(scores)
        if not math.isfinite(mean):
            raise UserError(
                "E121", f"metric {self.name} is {mean} on {len(scores)} samples", "see which outputs are not finite"
            )
        return Measured(self.name, mean, low, high, len(scores))

    def of_samples(self, outputs: Tensor, targets: Tensor) -> Scores:
        """Scores as float64, (samples,)."""
        with torch.no_grad():
            scores = self.scores(outputs, targets)
        if scores.shape != targets.shape[:1]:
            raise UserError(
                "E131",
                f"metric {self.name} gave shape {tuple(scores.shape)} for {len(targets)} samples",
                "return one score a sample, shape (batch,)",
            )
        return scores.double().cpu().numpy()
