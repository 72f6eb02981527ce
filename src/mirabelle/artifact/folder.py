"""To go on in torch: safetensors beside a record of how the architecture differs from its dense origin. No pickle."""

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
    """Write model.safetensors and architecture.json into `folder`."""
    folder = Path(folder)
    files.write_tensors(folder / _TENSORS, tensors_of_module(model))
    files.write_json(folder / _RECORD, architecture_of(model).to_data())


def load(factory: Callable[[], nn.Module] | nn.Module, folder: str | Path) -> nn.Module:
    """The model saved in `folder`, built on a fresh dense module.

    Args:
        factory: gives the dense module from which the compressed one descends (of a student: the student), or such a
            module itself, which is copied.
        folder: holds model.safetensors and architecture.json.

    Returns:
        The module in eval mode.

    Raises:
        UserError: E130 files missing, E140 they do not fit the module, E141 damaged, E142 newer.

    Example:
        >>> import tempfile, torch
        >>> place, dense = tempfile.mkdtemp(), torch.nn.Linear(2, 1)
        >>> save(dense, place)
        >>> torch.equal(load(lambda: torch.nn.Linear(2, 1), place).weight, dense.weight)
        True
    """
    folder = Path(folder)
    if not (folder / _RECORD).is_file():
        raise UserError("E130", f"no {_RECORD} in {folder}", "name a folder that a run or mirabelle.save left")
    dense = in_torch(factory if isinstance(factory, nn.Module) else factory())
    record = Architecture.from_data(files.read_json(folder / _RECORD))
    model = replayed(dense, record)
    load_tensors(model, files.read_tensors(folder / _TENSORS)[0], source=str(folder / _TENSORS))
    return model.eval()
