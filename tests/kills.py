"""The end of a process at a step of a training, for tests of what goes on afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


class KilledError(Exception):
    """Stands for the end of the process."""


class KilledAt:
    """A control that raises after so many steps; 0 for never."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self, model: nn.Module, progress: float) -> bool:
        self.left -= 1
        if self.left == 0:
            raise KilledError
        return False

    def settled(self, progress: float) -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        del state
