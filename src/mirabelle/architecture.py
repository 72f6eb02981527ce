"""How a model differs from its dense origin, as plain data that travels with it.

Which modules were replaced (and with what settings), and which tensors were pruned, so that later trainings keep their
zeros. Replayed on a fresh dense module it gives the model's shape back; the tensors then come from safetensors.
Only classes that Mirabelle's own doors export are ever looked up.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import nn

from mirabelle.errors import UserError, did_you_mean
from mirabelle.plain import lookup

SCHEMA = 1
_DOORS_OF_MODULES = ("quantize",)


class Replacement(Protocol):
    """A module of ours that stands where a dense one stood."""

    settings: dict[str, Any]

    @classmethod
    def standing_for(cls, dense: nn.Module, **settings: Any) -> nn.Module:
        """The replacement with its tensors still to be loaded."""


@dataclass(frozen=True)
class Architecture:
    """Differences from the dense origin.

    Args:
        pruned: names of the tensors whose zeros are kept in every later training.
        modules: name of a replaced module -> {"use": "family.Class", **settings}.
    """

    pruned: tuple[str, ...] = ()
    modules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def with_pruned(self, names: list[str]) -> Architecture:
        return replace(self, pruned=tuple(sorted({*self.pruned, *names})))

    def with_module(self, name: str, use: str, settings: Mapping[str, Any]) -> Architecture:
        kept = tuple(tensor for tensor in self.pruned if not tensor.startswith(f"{name}."))
        return replace(self, pruned=kept, modules={**self.modules, name: {"use": use, **settings}})

    def to_data(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "pruned": list(self.pruned),
            "modules": {name: dict(kind) for name, kind in self.modules.items()},
        }

    @staticmethod
    def from_data(data: Any) -> Architecture:
        """Read the plain data again.

        Raises:
            UserError: E142 when it was written by a newer Mirabelle, E141 when it is damaged.
        """
        if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
            raise UserError("E141", "architecture.json has no schema number", "restore the file")
        if data["schema"] > SCHEMA:
            raise UserError(
                "E142", f"architecture.json has schema {data['schema']}, this version reads {SCHEMA}", "upgrade Mirabelle"
            )
        pruned, modules = data.get("pruned"), data.get("modules")
        if (
            not isinstance(pruned, list)
            or not isinstance(modules, dict)
            or not all(isinstance(kind, dict) for kind in modules.values())
        ):
            raise UserError("E141", 'architecture.json lacks "pruned" or "modules"', "restore the file")
        return Architecture(tuple(map(str, pruned)), modules)


def architecture_of(model: nn.Module) -> Architecture:
    """The record that travels with a model; empty for a dense one."""
    record = model.__dict__.get("_mirabelle_architecture", Architecture())
    assert isinstance(record, Architecture)
    return record


def attach(model: nn.Module, record: Architecture) -> None:
    model.__dict__["_mirabelle_architecture"] = record


def replace_module(model: nn.Module, name: str, module: nn.Module, use: str, settings: Mapping[str, Any]) -> nn.Module:
    """The model with one module replaced, and the replacement recorded; the model itself changes unless `name` is ""."""
    record = architecture_of(model).with_module(name, use, settings)
    if name:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, module)
    else:
        model = module
    attach(model, record)
    return model


def replayed(dense: nn.Module, record: Architecture) -> nn.Module:
    """A copy of a dense module with the record's differences made; its tensors are still to be loaded.

    Raises:
        UserError: E140 when the module has no such part, E106 or E141 when the record names what Mirabelle does not have.
    """
    model = copy.deepcopy(dense)
    names = dict(dense.named_modules())
    for name, kind in record.modules.items():
        if name not in names:
            raise UserError("E140", f'architecture.json replaces "{name}", which the model has not', did_you_mean(name, names))
        settings = dict(kind)
        use = str(settings.pop("use", ""))
        door, _, class_name = use.partition(".")
        cls = lookup(door, class_name) if door in _DOORS_OF_MODULES else None
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise UserError("E141", f'architecture.json replaces "{name}" by "{use}", which is no module', "restore the file")
        model = replace_module(model, name, _standing_for(cls, name, names[name], settings), use, settings)
    attach(model, record)
    return model


def replaced_module_names(model: nn.Module) -> list[str]:
    """Names of the modules that are not the dense origin's, in the order in which they were replaced."""
    return list(architecture_of(model).modules)


def _standing_for(cls: Any, name: str, dense: nn.Module, settings: Mapping[str, Any]) -> nn.Module:
    try:
        replacement: nn.Module = cls.standing_for(dense, **settings)
    except TypeError as error:
        raise UserError("E141", f'architecture.json gives "{name}" wrong settings: {error}', "restore the file") from error
    return replacement
