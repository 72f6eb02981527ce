"""Edits: the changes that make a compressed model of its dense origin, each of which can be made again on a fresh module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn

from mirabelle.errors import UserError, did_you_mean
from mirabelle.model.replacement import REPLACEMENTS
from mirabelle.records.families import Family, subclass_of

Slices = Mapping[str, Mapping[str, str]]  # name of a tensor -> dimension, as text -> indices that are left, see `ranges`


class Edit(ABC):
    """One change of a model, as plain data.

    A new kind of change is a subclass, a frozen dataclass, that a package exports; `architecture.json` names it.
    """

    @abstractmethod
    def replay(self, model: nn.Module) -> nn.Module:
        """Make the change on a model that is like the one that it was made on; the tensors are loaded afterwards.

        Args:
            model: may itself be changed.

        Raises:
            UserError: E140 when the model has no such part, E141 when the record names what is not allowed.
        """

    @abstractmethod
    def to_data(self) -> dict[str, Any]:
        """Plain data from which `from_data` makes an equal edit."""

    @classmethod
    @abstractmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Read the plain data again.

        Raises:
            UserError: E141 when they are damaged.
        """

    def replaces(self, tensor: str) -> bool:
        """Whether a tensor that had this name before the edit is another one afterwards."""
        del tensor
        return False

    def slices_of(self, tensor: str) -> Mapping[str, str]:
        """By dimension, the indices that the edit leaves of a tensor; empty where it leaves all."""
        del tensor
        return {}


@dataclass(frozen=True)
class Cut(Edit):
    """Tensors sliced, and what the modules around them say of their widths.

    Args:
        slices: indices count in the tensors as they were before the cut.
        attributes: name of a module -> attribute -> its number.
    """

    slices: Slices = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @staticmethod
    def of(kept: Mapping[str, Mapping[int, list[int]]], attributes: Mapping[str, Mapping[str, Any]]) -> Cut:
        """From the indices that are kept of each dimension."""
        return Cut(slices_in_text(kept), {name: dict(values) for name, values in attributes.items()})

    def replay(self, model: nn.Module) -> nn.Module:
        names = {*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers(remove_duplicate=False))}
        modules = dict(model.named_modules())
        for name in self.slices:
            if name not in names:
                raise UserError("E140", f'architecture.json cuts "{name}", which the model has not', did_you_mean(name, names))
        for name, values in self.attributes.items():
            if name not in modules:
                message = f'architecture.json speaks of "{name}", which the model has not'
                raise UserError("E140", message, did_you_mean(name, modules))
            strange = [attribute for attribute, value in values.items() if not _may_be_set(modules[name], attribute, value)]
            if strange:
                raise UserError("E141", f'architecture.json may not set "{strange[0]}" of "{name}"', "restore the file")
        try:
            kept = {name: {int(d): indices_of(text) for d, text in parts.items()} for name, parts in self.slices.items()}
            slice_tensors(model, kept)
        except (ValueError, IndexError, RuntimeError, AttributeError) as error:
            message = f"architecture.json does not fit the model: {error}"
            raise UserError("E140", message, "give the module it was cut from") from error
        set_attributes(model, self.attributes)
        return model

    def to_data(self) -> dict[str, Any]:
        return {
            "slices": {name: dict(dimensions) for name, dimensions in self.slices.items()},
            "attributes": {name: dict(values) for name, values in self.attributes.items()},
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Cut:
        return Cut(table_of_tables(data, "slices"), table_of_tables(data, "attributes"))

    def slices_of(self, tensor: str) -> Mapping[str, str]:
        return self.slices.get(tensor, {})


@dataclass(frozen=True)
class Replace(Edit):
    """A module replaced by another one (`model.Replacement`).

    Args:
        module: its name; "" for the model itself.
        use: name of the class.
        settings: of its `from_dense`.
    """

    module: str
    use: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def replay(self, model: nn.Module) -> nn.Module:
        names = dict(model.named_modules())
        if self.module not in names:
            message = f'architecture.json replaces "{self.module}", which the model has not'
            raise UserError("E140", message, did_you_mean(self.module, names))
        try:
            cls: Any = REPLACEMENTS.imported_member(self.use)
        except UserError as error:
            raise error.at(f'architecture.json replaces "{self.module}"') from error.__cause__
        try:
            replacement: nn.Module = cls.from_dense(names[self.module], **self.settings)
        except TypeError as error:
            message = f'architecture.json gives "{self.module}" wrong settings: {error}'
            raise UserError("E141", message, "restore the file") from error
        return put(model, self.module, replacement)

    def to_data(self) -> dict[str, Any]:
        return {"module": self.module, "use": self.use, "settings": dict(self.settings)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Replace:
        module, use, settings = data.get("module"), data.get("use"), data.get("settings", {})
        if not isinstance(module, str) or not isinstance(use, str) or not isinstance(settings, Mapping):
            raise damaged("an entry that replaces nothing")
        return Replace(module, use, settings)

    def replaces(self, tensor: str) -> bool:
        return not self.module or tensor.startswith(f"{self.module}.")


EDITS = Family("edit", ("model", "graph"), subclass_of(Edit))


def put(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """The model with a module in the place of another one; the model itself changes unless `name` is ""."""
    if not name:
        return module
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
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


def slices_in_text(kept: Mapping[str, Mapping[int, list[int]]]) -> dict[str, dict[str, str]]:
    """Kept indices as plain data."""
    return {name: {str(d): ranges(indices) for d, indices in parts.items()} for name, parts in kept.items()}


def ranges(indices: Sequence[int]) -> str:
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


def table_of_tables(data: Mapping[str, Any], key: str) -> Mapping[str, Mapping[str, Any]]:
    """A table whose entries are tables; empty where there is none.

    Raises:
        UserError: E141 for anything else.
    """
    table = data.get(key, {})
    if not isinstance(table, Mapping) or not all(isinstance(entry, Mapping) for entry in table.values()):
        raise damaged(f'"{key}" is no table of tables')
    return table


def damaged(what: str) -> UserError:
    """What is raised for an architecture.json that cannot have been written so."""
    return UserError("E141", f"architecture.json is damaged: {what}", "restore the file")


def _may_be_set(module: nn.Module, attribute: str, value: Any) -> bool:
    """Whether a file may set an attribute: whole numbers where whole numbers stand, and nothing else."""
    before = getattr(module, attribute, None) if not attribute.startswith("_") else None
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        return False
    return isinstance(before, (list, tuple)) if isinstance(value, (list, tuple)) else isinstance(before, int)
