"""The contract of models that came from another framework and can go back to it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Native(Protocol):
    """A module that another framework's file has become."""

    def write_back(self, model: nn.Module, folder: Path) -> str:
        """Write what steps have made of this module in the framework's own form; the name of the file.

        Args:
            model: descends from this module.
            folder: of the run.

        Raises:
            UserError: E121 when its widths do not fit that form.
        """
