"""Trained weights from a file: of safetensors, or a state dict that torch has pickled, where that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirabelle.errors import UserError, first_line
from mirabelle.records.record import record
from mirabelle.run import files
from mirabelle.sources.checks import check_pickle, check_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

_INSIDE = ("state_dict", "model_state_dict", "model")  # under which training scripts keep it
_COUNTER = "num_batches_tracked"  # which torch has only kept since 2018


@record
class StateDict:
    """`weights = { pickle = "resnet.th" }`: a state dict that torch has saved, read as tensors alone; no code in it runs.

    Args:
        pickle: the file (.pt, .pth, .th, .bin, .ckpt).
        prefixes: what stands for the beginnings of names, such as { "module." = "" }; the first that fits counts.

    Example:
        >>> StateDict(pickle="x.th", prefixes={"module.": ""}).named({"module.fc.weight": 1, "step": 2})
        {'fc.weight': 1, 'step': 2}
    """

    pickle: str
    prefixes: Mapping[str, str] = field(default_factory=dict)

    def named(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The same under the names that the prefixes make."""
        found = {}
        for name, tensor in tensors.items():
            old = next((prefix for prefix in self.prefixes if name.startswith(prefix)), None)
            found[name if old is None else self.prefixes[old] + name.removeprefix(old)] = tensor
        return found


def load_weights(model: nn.Module, weights: Path | str | StateDict, folder: Path = Path()) -> None:
    """Copy the weights of a file into the model.

    Args:
        model: with the tensors of the file.
        weights: a safetensors file; or a `StateDict`.
        folder: against which paths are read.

    Raises:
        UserError: E143 for a pickle that is not asked for, or that holds more than tensors; E130, E140 and E141 as the file
            fails.
    """
    from mirabelle.model.state import load_tensors

    if isinstance(weights, StateDict):
        path = folder / weights.pickle
        check_pickle(path)
        tensors = weights.named(_pickled(path))
        own = model.state_dict()
        counters = {name: tensor for name, tensor in own.items() if name.endswith(_COUNTER) and name not in tensors}
        load_tensors(model, {**tensors, **counters}, source=str(path))
        return
    path = folder / weights
    check_weights(path)
    load_tensors(model, files.read_tensors(path)[0], source=str(path))


def _pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict.

    Raises:
        UserError: E143 when it holds code, E141 when it is damaged or no state dict.
    """
    import pickle

    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        message = f"{path} holds more than tensors, which may run code: {first_line(error)}"
        raise UserError("E143", message, "save model.state_dict() alone, as safetensors") from error
    except Exception as error:  # whatever a damaged archive leads to
        raise UserError("E141", f"{path} is no state dict of torch: {first_line(error)}", "save it again") from error
    for key in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise UserError("E141", f"{path} holds no state dict", "save model.state_dict()")
    return dict(found)
