"""Save and load compressed torch models: tensors as safetensors, and the edits of the dense model as JSON. No pickle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from mirabelle.errors import UserError
from mirabelle.model.architecture import Architecture, architecture_of, replayed
from mirabelle.model.state import load_tensors, tensors_of_module
from mirabelle.run import files
from mirabelle.sources.models.by_name import in_torch

_TENSORS, _RECORD = "model.safetensors", "architecture.json"


def save(model: nn.Module, folder: str | Path) -> None:
    """Save a model: write `model.safetensors` and `architecture.json` into a folder.

    Args:
        model: dense or compressed.
        folder: is created if it does not exist.

    Raises:
        UserError: E202 if the files cannot be written.
    """
    folder = Path(folder)
    files.write_tensors(folder / _TENSORS, tensors_of_module(model))
    files.write_json(folder / _RECORD, architecture_of(model).to_data())


def load(factory: Callable[[], nn.Module] | nn.Module, folder: str | Path) -> nn.Module:
    """Load a model that `save` or a run wrote.

    The edits of `architecture.json` are replayed on the dense module, then the tensors are loaded.

    Args:
        factory: returns the dense module from which the compressed model was made (for a distilled student: the student before
            its training); or such a module itself, which is copied.
        folder: contains `model.safetensors` and `architecture.json`.

    Returns:
        The module in eval mode.

    Raises:
        UserError: E130 if a file is missing; E140 if the files do not fit the module; E141 if they are damaged; E142 if they
            were written by a newer version; E106 for a user-defined class whose module is not imported.

    Example:
        >>> import tempfile, torch
        >>> folder, dense = tempfile.mkdtemp(), torch.nn.Linear(2, 1)
        >>> save(dense, folder)
        >>> torch.equal(load(lambda: torch.nn.Linear(2, 1), folder).weight, dense.weight)
        True
    """
    folder = Path(folder)
    if not (folder / _RECORD).is_file():
        raise UserError("E130", f"no {_RECORD} in {folder}", "give a folder written by a run or by mirabelle.save")
    dense = in_torch(factory if isinstance(factory, nn.Module) else factory())
    record = Architecture.from_data(files.read_json(folder / _RECORD))
    model = replayed(dense, record)
    load_tensors(model, files.read_tensors(folder / _TENSORS)[0], source=str(folder / _TENSORS))
    return model.eval()
