"""The interface of modules that were loaded from another framework's file and can be saved in its format again."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from mirabelle.model.architecture import architecture_of, replaced_modules
from mirabelle.model.call_results import HOLDER


@runtime_checkable
class Native(Protocol):
    """A module that was loaded from a file of another framework."""

    def write_back(self, model: nn.Module, folder: Path) -> str:
        """Save the compressed model in the framework's own format, and return the name of the file or folder.

        Args:
            model: the compressed model that the steps have made from this module.
            folder: of the run.

        Raises:
            UserError: E121 if the format cannot represent the model's widths.
        """


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name on the CPU; those of replaced modules (such as quantized layers) as for dense ones."""
    found = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(f"{HOLDER}.")}
    replaced, edits = replaced_modules(model), architecture_of(model).replaced
    dense: list[str] = []  # prefixes of modules that are described as dense ones, with all that is in them
    for name, module in replaced.items():
        plain = module.plain_tensors() if hasattr(module, "plain_tensors") else {}
        if not plain or name.startswith(tuple(dense)):
            continue
        for prefix in (f"{each}." if each else "" for each in (name, *edits[name].also)):
            dense.append(prefix)
            found = {key: tensor for key, tensor in found.items() if not key.startswith(prefix)}
            found |= {f"{prefix}{key}": tensor for key, tensor in plain.items()}
    for name, module in replaced.items():
        for key, borrowed in getattr(module, "borrowed_tensors", {}).items():
            found[f"{name}.{key}"] = found.pop(borrowed)
    return {name: tensor.detach().cpu() for name, tensor in found.items()}
