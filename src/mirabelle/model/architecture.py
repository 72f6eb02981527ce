"""The architecture record of a compressed model: the ordered list of edits that turned the dense model into it.

The record is attached to the model and saved as `architecture.json`. To load a compressed model, the edits are replayed on a
dense module, which gives the layers and shapes, and then the tensors are loaded from safetensors. Each class of edits
(`model.edits`) has its own code for the replay; it does not matter which step made the edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mirabelle.errors import UserError
from mirabelle.model.edits import EDITS, Edit, Replace, damaged, indices_of, put
from mirabelle.model.replacement import REPLACEMENTS
from mirabelle.model.schema_1 import edits_of_schema_1
from mirabelle.model.state import copied, on_same_parameters, take_apart

SCHEMA = 2


@dataclass(frozen=True)
class Architecture:
    """The differences between a compressed model and the dense module that it was made from.

    Args:
        edits: in the order in which they were made.
        pruned: names of the tensors whose zeros are kept in all later trainings.
    """

    edits: tuple[Edit, ...] = ()
    pruned: tuple[str, ...] = ()

    def with_pruned(self, names: Sequence[str]) -> Architecture:
        """A copy of the record with more tensors whose zeros are kept."""
        return replace(self, pruned=tuple(sorted({*self.pruned, *names})))

    def without_pruned(self, names: Sequence[str]) -> Architecture:
        """A copy of the record without some tensors whose zeros were kept."""
        return replace(self, pruned=tuple(name for name in self.pruned if name not in set(names)))

    def with_edit(self, edit: Edit) -> Architecture:
        """A copy of the record with one more edit; tensors that the edit replaces are removed from `pruned`."""
        return Architecture((*self.edits, edit), tuple(name for name in self.pruned if not edit.replaces(name)))

    @property
    def replaced(self) -> dict[str, Replace]:
        """Name of each replaced module -> the last edit that replaced it, in the order of the first replacements."""
        return {edit.module: edit for edit in self.edits if isinstance(edit, Replace)}

    @property
    def rewritten(self) -> str | None:
        """Why a rewritten program replaced the code of the module, in words; None if the module's own code is used."""
        reasons = [edit.rewritten for edit in self.edits if edit.rewritten is not None]
        return reasons[-1] if reasons else None

    def kept_since(self, earlier: Architecture, tensor: str, dimension: int, size: int) -> list[int]:
        """The indices of a tensor's dimension that are kept by the edits made since an earlier record.

        Args:
            earlier: record of the model from which this one was made.
            tensor: name of the tensor, the same in both models.
            dimension: of the tensor.
            size: of this dimension in the earlier model.

        Returns:
            Indices in the earlier tensor, in increasing order.
        """
        count = len(earlier.edits)
        kept = list(range(size))
        for edit in self.edits[count:] if self.edits[:count] == earlier.edits else self.edits:
            text = edit.slices_of(tensor).get(str(dimension))
            if text is not None:
                kept = [kept[index] for index in indices_of(text)]
        return kept

    def to_data(self) -> dict[str, Any]:
        """The record as plain data: the content of `architecture.json`."""
        edits = [{"edit": EDITS.name_of(type(edit)), **edit.to_data()} for edit in self.edits]
        return {"schema": SCHEMA, "pruned": list(self.pruned), "edits": edits}

    @staticmethod
    def from_data(data: Any) -> Architecture:
        """Create a record from plain data that `to_data`, of this or an earlier version, returned.

        Raises:
            UserError: E142 if the data were written by a newer Mirabelle; E141 if they are damaged; E106 for a user-defined
                edit whose module is not imported.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("schema"), int):
            raise UserError("E141", "architecture.json has no schema number", "restore the file")
        if data["schema"] > SCHEMA:
            message = f"architecture.json has schema {data['schema']}, this version reads up to {SCHEMA}"
            raise UserError("E142", message, "upgrade Mirabelle")
        edits = edits_of_schema_1(data) if data["schema"] == 1 else data.get("edits")
        pruned = data.get("pruned")
        if not isinstance(pruned, list) or not isinstance(edits, list):
            raise UserError("E141", 'architecture.json lacks "pruned" or "edits"', "restore the file")
        return Architecture(tuple(map(_edit_from_data, edits)), tuple(map(str, pruned)))


def architecture_of(model: nn.Module) -> Architecture:
    """The architecture record attached to a model; an empty record for a dense model."""
    record = model.__dict__.get("_mirabelle_architecture", Architecture())
    assert isinstance(record, Architecture)
    return record


def attach(model: nn.Module, record: Architecture) -> None:
    """Attach an architecture record to a model."""
    model.__dict__["_mirabelle_architecture"] = record


def replace_module(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Replace a module of a model, under all its names if several parts of the model share it, and record the edit.

    Args:
        model: is changed in place, unless `name` is "".
        name: a name of the module to replace; "" for the model itself.
        module: a `Replacement`, or any module with a class method `from_dense` and an attribute `settings`.

    Returns:
        The changed model; `module` if `name` is "".

    Raises:
        UserError: E106 if the class of the module is not one that a saved run could make again.
    """
    if not REPLACEMENTS.is_member(type(module)) or not hasattr(module, "settings"):
        message = f'{type(module).__name__} cannot stand for "{name}" in a saved model'
        raise UserError(
            "E106", message, "give the class a class method from_dense(dense, **settings), and its objects `settings`"
        )
    old = model.get_submodule(name)
    names = [other for other, same in model.named_modules(remove_duplicate=False) if same is old]
    use, settings = REPLACEMENTS.name_of(type(module)), dict(module.settings)  # type: ignore[arg-type]  # plain data
    record = architecture_of(model).with_edit(Replace(names[0], use, settings, tuple(names[1:])))
    model = put(model, names, module)
    attach(model, record)
    return model


def replayed(dense: nn.Module, record: Architecture) -> nn.Module:
    """Replay the edits of a record on a copy of a dense module. The tensors must be loaded afterwards.

    Raises:
        UserError: E140 if the module does not fit the record; E106 if the record names an unknown class, or a user-defined one
            whose module is not imported; E141 if the record is damaged; E121 if the module cannot be traced.
    """
    # Weights of modules that are replaced are only read, so they need no copy; a user's own code may change them.
    replaces = all(isinstance(edit, Replace) and ":" not in edit.use for edit in record.edits)
    model = on_same_parameters(dense) if replaces else copied(dense)
    for edit in record.edits:
        model = edit.replay(model)
    if replaces:
        take_apart(model, dense)
    attach(model, record)
    return model


def replaced_modules(model: nn.Module) -> dict[str, Any]:
    """The modules that replaced modules of the dense model, by name, in the order in which they were inserted."""
    modules = dict(model.named_modules())
    names = architecture_of(model).replaced
    return {name: modules[name] for name in names if hasattr(modules.get(name), "from_dense")}


def replaced_module_names(model: nn.Module) -> list[str]:
    """Names of the modules that replaced modules of the dense model, in the order in which they were inserted."""
    return list(replaced_modules(model))


def rounds(model: nn.Module) -> bool:
    """Whether a replaced module rounds its results, so that runtimes may differ by one rounding step."""
    return any(getattr(module, "rounds", False) for module in replaced_modules(model).values())


def _edit_from_data(data: Any) -> Edit:
    if not isinstance(data, Mapping) or not isinstance(data.get("edit"), str):
        raise damaged("an entry is not an edit")
    cls: Any = EDITS.imported_member(data["edit"])
    edit: Edit = cls.from_data(data)
    return edit
