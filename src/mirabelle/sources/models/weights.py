"""Load trained weights from a safetensors file or, if requested, from a state dict pickled by torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirabelle.errors import UserError, first_line
from mirabelle.records.record import record
from mirabelle.records.trust import check_trusted
from mirabelle.run import files
from mirabelle.sources.checks import check_pickle, check_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

_INSIDE = ("state_dict", "model_state_dict", "model")  # keys under which training scripts save the state dict
_COUNTER = "num_batches_tracked"  # missing in files from before PyTorch 0.4.1


@record
class StateDict:
    """A state dict saved by torch.save, as `weights = { pickle = "resnet.th" }`; only tensors are read, and no code is run.

    Args:
        pickle: the file (.pt, .pth, .th, .bin, .ckpt).
        prefixes: replacements for prefixes of names, such as { "module." = "" }; the first prefix that matches is replaced.

    Example:
        >>> StateDict(pickle="x.th", prefixes={"module.": ""}).named({"module.fc.weight": 1, "step": 2})
        {'fc.weight': 1, 'step': 2}
    """

    pickle: str
    prefixes: Mapping[str, str] = field(default_factory=dict)

    def named(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors with the prefixes of their names replaced."""
        found = {}
        for name, tensor in tensors.items():
            old = next((prefix for prefix in self.prefixes if name.startswith(prefix)), None)
            found[name if old is None else self.prefixes[old] + name.removeprefix(old)] = tensor
        return found


def load_weights(model: nn.Module, weights: Path | str | StateDict, folder: Path = Path()) -> None:
    """Copy the weights of a file into a model.

    Args:
        model: must have the tensors of the file.
        weights: the path of a safetensors file, or a `StateDict`.
        folder: relative paths refer to it.

    Raises:
        UserError: E143 for a pickle that is not given as a `StateDict`, or that contains more than tensors; E130 if the file
            does not exist, E140 if its tensors do not fit the model, E141 if it is damaged.
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
    """The tensors of a pickled state dict.

    Raises:
        UserError: E143 if it contains code, E141 if it is damaged or not a state dict; E144 if a folder names it that is not
            trusted.
    """
    import pickle

    import torch

    check_trusted(str(path))
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        message = f"{path} contains more than tensors, which may run code: {first_line(error)}"
        raise UserError("E143", message, "save only model.state_dict(), as safetensors") from error
    except Exception as error:  # a damaged archive can raise any exception
        raise UserError("E141", f"{path} is not a state dict of torch: {first_line(error)}", "save it again") from error
    for key in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise UserError("E141", f"{path} contains no state dict", "save model.state_dict()")
    return dict(found)
