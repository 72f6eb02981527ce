"""The contract of models that came from another framework and can go back to it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from mirabelle.model.architecture import replaced_modules


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


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those of replaced modules as the numbers of the dense ones that give the same results."""
    found = dict(model.state_dict())
    replaced = replaced_modules(model)
    for name, module in replaced.items():
        if hasattr(module, "plain_tensors"):
            found |= {f"{name}.{key}": tensor for key, tensor in module.plain_tensors().items()}
    for name, module in replaced.items():
        for key, borrowed in getattr(module, "borrowed_tensors", {}).items():
            found[f"{name}.{key}"] = found.pop(borrowed)
    return {name: tensor.detach().cpu() for name, tensor in found.items()}
