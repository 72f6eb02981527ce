"""Controls of a training with rounded weights: oscillating numbers are damped, and idle units lose what is left of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from mirabelle.quantize.rounded_layer import RoundedLayer

_STRENGTH = 0.5
_FIRST, _EACH = 0.5, 0.05  # shares of a training after which idle units are looked for: from the first on, at each


class Damping:
    """Moves rounded numbers a little towards their levels after each optimizer step (a `training.Control`).

    w ← w + min(0.5 · |Δw|, s) · (q − w / s), with the step s, the level q = round(w / s), and |Δw|, the root mean square of the
    change of the tensor by the optimizer step. Without it, numbers between two levels change from one to the other at every
    other step: what the gradient wants is a value in between, and rounding does not give it. Now a number changes its level
    only where gradients agree for longer. As it is measured by the steps of the optimizer, it fits each kind of optimizer, and
    ends with the learning rate.

    By this control only the end of a training can be the best: before, the model has too many bits.

    Source: Nagel, Fournarakis, Bondarenko, Blankevoort 2022, arXiv:2203.11086 (damping as a term of the loss).
    """

    def __call__(self, model: nn.Module, progress: float) -> bool:
        del progress
        done: set[int] = set()  # layers may share a weight
        for layer in model.modules():
            if isinstance(layer, RoundedLayer):
                layer.damp(_STRENGTH, done)
        return False

    def settled(self, progress: float) -> bool:
        return progress >= 1

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        del state


class Clearing:
    """Sets what is left of idle units to zero during a training (a `training.Control`), so that a size does not count them.

    Args:
        clear: does it to the model in training.
    """

    def __init__(self, clear: Callable[[nn.Module], object]) -> None:
        self._clear, self._due = clear, _FIRST

    def __call__(self, model: nn.Module, progress: float) -> bool:
        if progress >= self._due:
            self._clear(model)
            self._due = progress + _EACH
        return False

    def settled(self, progress: float) -> bool:
        del progress
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"due": self._due}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._due = state["due"]
