"""How a model differs from its dense origin, as plain data that travels with it.

Which elements of which tensors are left, and what the modules around them say of their widths; which modules were replaced
(and with what settings); and which tensors were pruned, so that later trainings keep their zeros. Replayed on a fresh dense
module it gives the model's shape back; the tensors then come from safetensors. Only classes that Mirabelle's own doors export
are ever looked up, and only whole numbers are ever set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from mirabelle.errors import UserError, did_you_mean
from mirabelle.model.state import copied
from mirabelle.records.record import lookup

SCHEMA = 1
_DOORS_OF_MODULES = ("prune", "quantize", "distill")
_AFTER_CUTS = "quantize."  # layers of integers, which are not cut any more
_BEFORE_CUTS = "distill."  # modules of a student's own, which may be cut and quantized afterwards


class Replacement(Protocol):
    """A module of ours that stands where a dense one stood."""

    settings: dict[str, Any]

    @classmethod
    def from_dense(cls, dense: nn.Module, **settings: Any) -> nn.Module:
        """The replacement with its tensors still to be loaded."""


@dataclass(frozen=True)
class Architecture:
    """Differences from the dense origin.

    Args:
        pruned: names of the tensors whose zeros are kept in every later training.
        modules: name of a replaced module -> {"use": "family.Class", **settings}.
        slices: name of a tensor -> dimension, as text -> the indices that are left of the dense one, as `ranges` writes them.
        attributes: name of a module -> attribute -> its number.
        program: {"inputs": shapes and types of the trace, "why": words} where a rewritten program stands for the module.
    """

    pruned: tuple[str, ...] = ()
    modules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    slices: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    program: Mapping[str, Any] = field(default_factory=dict)

    def with_pruned(self, names: list[str]) -> Architecture:
        return replace(self, pruned=tuple(sorted({*self.pruned, *names})))

    def with_module(self, name: str, use: str, settings: Mapping[str, Any]) -> Architecture:
        kept = tuple(tensor for tensor in self.pruned if not tensor.startswith(f"{name}."))
        return replace(self, pruned=kept, modules={**self.modules, name: {"use": use, **settings}})

    def without(self, name: str) -> Architecture:
        """Without what is said of a module and of all below it: another one takes its place."""

        def of_others(table: Mapping[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in table.items() if key != name and not key.startswith(f"{name}.")}

        pruned = tuple(tensor for tensor in self.pruned if not tensor.startswith(f"{name}."))
        return replace(
            self,
            pruned=pruned,
            modules=of_others(self.modules),
            slices=of_others(self.slices),
            attributes=of_others(self.attributes),
        )

    def with_slices(
        self, kept: Mapping[str, Mapping[int, list[int]]], attributes: Mapping[str, Mapping[str, Any]]
    ) -> Architecture:
        """After a cut of what was there: indices count in the tensors as they are now."""
        slices = {name: dict(dimensions) for name, dimensions in self.slices.items()}
        for name, dimensions in kept.items():
            for dimension, indices in dimensions.items():
                before = slices.setdefault(name, {}).get(str(dimension))
                places = indices if before is None else [indices_of(before)[index] for index in indices]
                slices[name][str(dimension)] = ranges(places)
        changed = {name: {**self.attributes.get(name, {}), **values} for name, values in attributes.items()}
        return replace(self, slices=slices, attributes={**self.attributes, **changed})

    def with_program(self, inputs: Mapping[str, Any], why: str) -> Architecture:
        return replace(self, program={"inputs": inputs, "why": why})

    def modules_around_cuts(self) -> tuple[dict[str, Mapping[str, Any]], dict[str, Mapping[str, Any]]]:
        """The replaced modules of a rewritten program: those that its trace met, and those that were put into it."""
        after = {name: kind for name, kind in self.modules.items() if str(kind.get("use", "")).startswith(_AFTER_CUTS)}
        return {name: kind for name, kind in self.modules.items() if name not in after}, after

    def to_data(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "pruned": list(self.pruned),
            "modules": {name: dict(kind) for name, kind in self.modules.items()},
            "slices": {name: dict(dimensions) for name, dimensions in self.slices.items()},
            "attributes": {name: dict(values) for name, values in self.attributes.items()},
            "program": dict(self.program),
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
        tables = [modules, data.get("slices", {}), data.get("attributes", {})]
        program = data.get("program", {})
        if not isinstance(pruned, list) or not all(isinstance(table, dict) for table in [*tables, program]):
            raise UserError("E141", 'architecture.json lacks "pruned" or "modules"', "restore the file")
        if not all(isinstance(entry, dict) for table in tables for entry in table.values()):
            raise UserError("E141", "architecture.json has an entry that is no table", "restore the file")
        return Architecture(tuple(map(str, pruned)), tables[0], tables[1], tables[2], program)


def ranges(indices: list[int]) -> str:
    """Rising indices as text.

    Example:
        >>> ranges([0, 1, 2, 5, 7, 8])
        '0-2,5,7-8'
    """
    parts: list[list[int]] = []
    for index in indices:
        if parts and index == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], index]
        else:
            parts.append([index])
    return ",".join("-".join(map(str, part)) for part in parts)


def indices_of(text: str) -> list[int]:
    """The indices that `ranges` wrote.

    Raises:
        ValueError: when the text is none of its own.
    """
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    if found != sorted(set(found)) or (found and found[0] < 0):
        raise ValueError(text)
    return found


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
    model = copied(dense)
    structural = {name: kind for name, kind in record.modules.items() if str(kind.get("use", "")).startswith(_BEFORE_CUTS)}
    model = _replay_modules(model, structural)
    _replay_slices(model, record)
    model = _replay_modules(model, {name: kind for name, kind in record.modules.items() if name not in structural})
    attach(model, record)
    return model


def _replay_modules(model: nn.Module, modules: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    for name, kind in modules.items():
        names = dict(model.named_modules())  # what was replaced before may hold it
        if name not in names:
            raise UserError("E140", f'architecture.json replaces "{name}", which the model has not', did_you_mean(name, names))
        settings = dict(kind)
        use = str(settings.pop("use", ""))
        door, _, class_name = use.partition(".")
        cls = lookup(door, class_name) if door in _DOORS_OF_MODULES else None
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise UserError("E141", f'architecture.json replaces "{name}" by "{use}", which is no module', "restore the file")
        model = replace_module(model, name, _standing_for(cls, name, names[name], settings), use, settings)
    return model


def slice_tensors(model: nn.Module, kept: Mapping[str, Mapping[int, list[int]]]) -> None:
    """Leave only these indices of these parameters and buffers of the model itself; ties stay ties."""
    named = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    for name, dimensions in kept.items():
        dense, tensor = named[name], named[name].detach()
        for dimension, indices in dimensions.items():
            tensor = tensor.index_select(dimension, torch.tensor(indices, device=tensor.device))
        tensor = tensor.clone()
        cut = nn.Parameter(tensor, requires_grad=dense.requires_grad) if isinstance(dense, nn.Parameter) else tensor
        for other, value in named.items():
            if value is dense:
                place, _, last = other.rpartition(".")
                setattr(model.get_submodule(place), last, cut)


def set_attributes(model: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """What modules of the model itself say of their widths."""
    for name, values in attributes.items():
        module = model.get_submodule(name)
        for attribute, value in values.items():
            setattr(module, attribute, tuple(value) if isinstance(value, list) else value)


def _replay_slices(model: nn.Module, record: Architecture) -> None:
    held = {*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers(remove_duplicate=False))}
    modules = dict(model.named_modules())
    for name in record.slices:
        if name not in held:
            raise UserError("E140", f'architecture.json cuts "{name}", which the model has not', did_you_mean(name, held))
    for name, values in record.attributes.items():
        if name not in modules:
            raise UserError(
                "E140", f'architecture.json speaks of "{name}", which the model has not', did_you_mean(name, modules)
            )
        strange = [attribute for attribute, value in values.items() if not _may_be_set(modules[name], attribute, value)]
        if strange:
            raise UserError("E141", f'architecture.json may not set "{strange[0]}" of "{name}"', "restore the file")
    try:
        kept = {name: {int(d): indices_of(text) for d, text in parts.items()} for name, parts in record.slices.items()}
        slice_tensors(model, kept)
    except (ValueError, IndexError, RuntimeError, AttributeError) as error:
        raise UserError(
            "E140", f"architecture.json does not fit the model: {error}", "give the module it was cut from"
        ) from error
    set_attributes(model, record.attributes)


def _may_be_set(module: nn.Module, attribute: str, value: Any) -> bool:
    """Whether a file may set an attribute: whole numbers where whole numbers stand, and nothing else."""
    before = getattr(module, attribute, None) if not attribute.startswith("_") else None
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        return False
    return isinstance(before, (list, tuple)) if isinstance(value, (list, tuple)) else isinstance(before, int)


def replaced_module_names(model: nn.Module) -> list[str]:
    """Names of the modules that are not the dense origin's, in the order in which they were replaced."""
    return list(architecture_of(model).modules)


def _standing_for(cls: Any, name: str, dense: nn.Module, settings: Mapping[str, Any]) -> nn.Module:
    try:
        replacement: nn.Module = cls.from_dense(dense, **settings)
    except TypeError as error:
        raise UserError("E141", f'architecture.json gives "{name}" wrong settings: {error}', "restore the file") from error
    return replacement
