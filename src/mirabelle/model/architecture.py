"""How a model differs from its dense origin, as plain data that travels with it: one list of edits, in their order.

Replayed on a fresh dense module, the edits give the model's shape back; the tensors then come from safetensors. Each edit is
replayed by its own kind (`model.edits`), whatever family of steps made it.
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
from mirabelle.model.state import copied

SCHEMA = 2


@dataclass(frozen=True)
class Architecture:
    """Differences from the dense origin.

    Args:
        edits: in the order in which they were made.
        pruned: names of the tensors whose zeros are kept in every later training.
    """

    edits: tuple[Edit, ...] = ()
    pruned: tuple[str, ...] = ()

    def with_pruned(self, names: Sequence[str]) -> Architecture:
        """With more tensors whose zeros are kept."""
        return replace(self, pruned=tuple(sorted({*self.pruned, *names})))

    def with_edit(self, edit: Edit) -> Architecture:
        """With one more edit; tensors that it replaces are no longer pruned ones."""
        return Architecture((*self.edits, edit), tuple(name for name in self.pruned if not edit.replaces(name)))

    @property
    def replaced(self) -> dict[str, Replace]:
        """By the name of a module, the edit that put it in last, in the order in which they were put in first."""
        return {edit.module: edit for edit in self.edits if isinstance(edit, Replace)}

    @property
    def rewritten(self) -> str | None:
        """Why a rewritten program stands for the module, in words; None where the module's own code runs."""
        return next((str(edit.why) for edit in reversed(self.edits) if hasattr(edit, "why")), None)

    def kept_since(self, earlier: Architecture, tensor: str, dimension: int, size: int) -> list[int]:
        """Which indices of a dimension of a tensor are left of those that it had earlier.

        Args:
            earlier: the record of a model from which this one was made; by the edits that have come since it is told.
            tensor: its name, in both.
            dimension: of the tensor.
            size: of the dimension, earlier.
        """
        count = len(earlier.edits)
        places = list(range(size))
        for edit in self.edits[count:] if self.edits[:count] == earlier.edits else self.edits:
            text = edit.slices_of(tensor).get(str(dimension))
            if text is not None:
                places = [places[index] for index in indices_of(text)]
        return places

    def to_data(self) -> dict[str, Any]:
        """Plain data, as architecture.json holds them."""
        edits = [{"edit": EDITS.name_of(type(edit)), **edit.to_data()} for edit in self.edits]
        return {"schema": SCHEMA, "pruned": list(self.pruned), "edits": edits}

    @staticmethod
    def from_data(data: Any) -> Architecture:
        """Read the plain data again.

        Raises:
            UserError: E142 when they were written by a newer Mirabelle, E141 when they are damaged, E106 for an edit of
                a user's own whose module is not imported.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("schema"), int):
            raise UserError("E141", "architecture.json has no schema number", "restore the file")
        if data["schema"] > SCHEMA:
            message = f"architecture.json has schema {data['schema']}, this version reads {SCHEMA}"
            raise UserError("E142", message, "upgrade Mirabelle")
        edits = edits_of_schema_1(data) if data["schema"] == 1 else data.get("edits")
        pruned = data.get("pruned")
        if not isinstance(pruned, list) or not isinstance(edits, list):
            raise UserError("E141", 'architecture.json lacks "pruned" or "edits"', "restore the file")
        return Architecture(tuple(map(_edit_from_data, edits)), tuple(map(str, pruned)))


def architecture_of(model: nn.Module) -> Architecture:
    """The record that travels with a model; empty for a dense one."""
    record = model.__dict__.get("_mirabelle_architecture", Architecture())
    assert isinstance(record, Architecture)
    return record


def attach(model: nn.Module, record: Architecture) -> None:
    """Let a record travel with a model."""
    model.__dict__["_mirabelle_architecture"] = record


def replace_module(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """The model with one module replaced, and the replacement recorded.

    Args:
        model: it changes itself, unless `name` is "".
        name: of the module that is replaced; "" for the model itself.
        module: a `Replacement`, or any module with a method `from_dense` and its `settings`.
    """
    edit = Replace(name, REPLACEMENTS.name_of(type(module)), dict(module.settings))  # type: ignore[arg-type]  # plain data
    record = architecture_of(model).with_edit(edit)
    model = put(model, name, module)
    attach(model, record)
    return model


def replayed(dense: nn.Module, record: Architecture) -> nn.Module:
    """A copy of a dense module with the record's edits made; its tensors are still to be loaded.

    Raises:
        UserError: E140 when the module has no such part; E106 or E141 when the record names what Mirabelle does not have, or
            what is the user's own and not imported; E121 when it cannot be traced any more.
    """
    model = copied(dense)
    for edit in record.edits:
        model = edit.replay(model)
    attach(model, record)
    return model


def replaced_modules(model: nn.Module) -> dict[str, Any]:
    """The modules that are not the dense origin's, by name, in the order in which they were put in."""
    modules = dict(model.named_modules())
    names = architecture_of(model).replaced
    return {name: modules[name] for name in names if hasattr(modules.get(name), "from_dense")}


def replaced_module_names(model: nn.Module) -> list[str]:
    """Names of the modules that are not the dense origin's, in the order in which they were put in."""
    return list(replaced_modules(model))


def rounds(model: nn.Module) -> bool:
    """Whether results of a replaced module are rounded, so that another runtime may round some of them otherwise."""
    return any(getattr(module, "rounds", False) for module in replaced_modules(model).values())


def _edit_from_data(data: Any) -> Edit:
    if not isinstance(data, Mapping) or not isinstance(data.get("edit"), str):
        raise damaged("an entry is no edit")
    cls: Any = EDITS.imported_member(data["edit"])
    edit: Edit = cls.from_data(data)
    return edit
