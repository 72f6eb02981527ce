"""Save and load compressed torch models: tensors as safetensors, and the edits of the dense model as JSON. No pickle.

`architecture.json` also names the digest of the tensors, so that a damaged file, or one of another model, is noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.model.architecture import Architecture, architecture_of, replayed
from mirabelle.model.state import load_tensors, tensors_of_module
from mirabelle.records.functions import object_from
from mirabelle.run import files
from mirabelle.sources.models.by_name import in_torch

_TENSORS, _RECORD = "model.safetensors", "architecture.json"
_PINNED = "tensors"  # the key of the digest of the tensors in architecture.json


def save(model: nn.Module, folder: str | Path) -> None:
    """Save a model: write `model.safetensors` and `architecture.json` into a folder.

    Args:
        model: dense or compressed.
        folder: is created if it does not exist.

    Raises:
        UserError: E202 if the files cannot be written.
    """
    folder = Path(folder)
    pinned = files.write_tensors(folder / _TENSORS, tensors_of_module(model))
    files.write_json(folder / _RECORD, {**architecture_of(model).to_data(), _PINNED: pinned})


def load(factory: Callable[[], nn.Module] | nn.Module, folder: str | Path, *, trust: bool = False) -> nn.Module:
    """Load a model that `save` or a run wrote.

    The edits of `architecture.json` are replayed on the dense module, then the tensors are loaded. Both files are data: a
    user-defined class that they name is looked up among the modules that are already imported.

    Args:
        factory: returns the dense module from which the compressed model was made (for a distilled student: the student before
            its training); or such a module itself, which is copied.
        folder: contains `model.safetensors` and `architecture.json`.
        trust: the folder is trusted like a program: classes that it names are imported, from packages or Python files in it.

    Returns:
        The module in eval mode.

    Raises:
        UserError: E130 if a file is missing; E140 if the files do not fit the module; E141 if they are damaged; E142 if they
            were written by a newer version; E106 for a user-defined class whose module is not imported; E120 if it cannot be.

    Example:
        >>> import tempfile, torch
        >>> folder, dense = tempfile.mkdtemp(), torch.nn.Linear(2, 1)
        >>> save(dense, folder)
        >>> torch.equal(load(lambda: torch.nn.Linear(2, 1), folder).weight, dense.weight)
        True
    """
    if trust:
        _import_classes(Path(folder))
    return load_with_digest(factory, folder)[0]


def _import_classes(folder: Path) -> None:
    """Import the user-defined classes that the edits in a folder name."""
    edits = _read(folder)[0].get("edits", [])
    for name in {edit.get(key) for edit in edits for key in ("edit", "use")}:
        if isinstance(name, str) and ":" in name:
            object_from(name, folder)


def load_with_digest(factory: Callable[[], nn.Module] | nn.Module, folder: str | Path) -> tuple[nn.Module, str | None]:
    """(model, digest of its edits and tensors), as `load` reads it; the digest is None if an earlier version wrote the files.

    Raises:
        UserError: as `load`.
    """
    folder = Path(folder)
    data, tensors, digest = _read(folder)
    dense = in_torch(factory if isinstance(factory, nn.Module) else factory())
    model = replayed(dense, Architecture.from_data(data))
    load_tensors(model, tensors, source=str(folder / _TENSORS))
    return model.eval(), digest


def digest_of_model(folder: Path) -> str | None:
    """The digest of the edits and tensors of the model in a folder, whose files are checked; None without digests.

    Raises:
        UserError: E130 if a file is missing; E141 if one is damaged, or the two were not written together.
    """
    return _read(folder)[2]


def _read(folder: Path) -> tuple[Any, dict[str, Tensor], str | None]:
    """(content of architecture.json, tensors, digest of both), checked."""
    if not (folder / _RECORD).is_file():
        raise UserError("E130", f"no {_RECORD} in {folder}", "give a folder written by a run or by mirabelle.save")
    data, digest = files.read_json_and_digest(folder / _RECORD)
    tensors, _, written = files.read_tensors_and_digest(folder / _TENSORS)
    pinned = data.get(_PINNED) if isinstance(data, Mapping) else None
    if pinned is not None and pinned != written:
        message = f"{folder / _TENSORS} is damaged, or was not written together with {_RECORD}"
        raise UserError("E141", message, "restore both files, or run the same command again")
    return data, tensors, digest
