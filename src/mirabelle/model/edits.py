"""Edits: the recorded changes of a dense model, which can be replayed on another instance of the dense module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mirabelle.errors import UserError, did_you_mean
from mirabelle.model.replacement import REPLACEMENTS, Replacement
from mirabelle.records.families import Family, subclass_of

Slices = Mapping[str, Mapping[str, str]]  # name of a tensor -> dimension, as a string -> kept indices as written by `ranges`


class Edit(ABC):
    """A change of a model that can be saved and replayed.

    To add a kind of change, define a subclass that is a frozen dataclass and export it from a package. `architecture.json`
    refers to it by name.
    """

    @abstractmethod
    def replay(self, model: nn.Module) -> nn.Module:
        """Make the change on a model of the same architecture as the original one. The tensors are loaded afterwards.

        Args:
            model: may be changed in place.

        Returns:
            The changed model.

        Raises:
            UserError: E140 if the edit does not fit the model; E141 if the record asks for a change that is not allowed.
        """

    @abstractmethod
    def to_data(self) -> dict[str, Any]:
        """The edit as plain data, from which `from_data` creates an equal edit."""

    @classmethod
    @abstractmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Create an edit from plain data.

        Raises:
            UserError: E141 if the data are damaged.
        """

    def replaces(self, tensor: str) -> bool:
        """Whether the edit replaces the tensor of this name by another one, or removes it."""
        del tensor
        return False

    def slices_of(self, tensor: str) -> Mapping[str, str]:
        """Dimension -> the indices of a tensor that the edit keeps (see `ranges`); dimensions that are not cut are omitted."""
        del tensor
        return {}

    @property
    def rewritten(self) -> str | None:
        """Why the edit replaces the code of the whole model by a rewritten program, in words; None if it keeps the code."""
        return None


@dataclass(frozen=True)
class Cut(Edit):
    """The removal of elements from parameters and buffers, and the adjustment of module attributes such as `out_channels`.

    Args:
        slices: name of a tensor -> dimension, as a string -> kept indices, as written by `ranges`. The indices refer to the
            tensors before the cut.
        attributes: name of a module -> attribute -> its new integer, or list of integers.
    """

    slices: Slices = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @staticmethod
    def of(kept: Mapping[str, Mapping[int, list[int]]], attributes: Mapping[str, Mapping[str, Any]]) -> Cut:
        """Create a cut from the kept indices of each dimension, by the names of the tensors."""
        return Cut(slices_in_text(kept), {name: dict(values) for name, values in attributes.items()})

    def replay(self, model: nn.Module) -> nn.Module:
        names = {*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers(remove_duplicate=False))}
        modules = dict(model.named_modules())
        for name in self.slices:
            if name not in names:
                message = f'architecture.json cuts the tensor "{name}", which the model does not have'
                raise UserError("E140", message, did_you_mean(name, names))
        for name, values in self.attributes.items():
            if name not in modules:
                message = f'architecture.json changes the module "{name}", which the model does not have'
                raise UserError("E140", message, did_you_mean(name, modules))
            forbidden = [attribute for attribute, value in values.items() if not _may_be_set(modules[name], attribute, value)]
            if forbidden:
                raise UserError("E141", f'architecture.json may not set "{forbidden[0]}" of "{name}"', "restore the file")
        try:
            kept = {name: {int(d): indices_of(text) for d, text in parts.items()} for name, parts in self.slices.items()}
            slice_tensors(model, kept)
        except (ValueError, IndexError, RuntimeError, AttributeError) as error:
            message = f"architecture.json does not fit the model: {error}"
            raise UserError("E140", message, "give the dense module from which the model was made") from error
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
    """The replacement of a module by another one, usually a `model.Replacement`.

    Args:
        module: name of the replaced module; "" for the model itself.
        use: name of the class of the new module.
        settings: keyword arguments of the class's `from_dense`.
        also: the other names of a module that several parts of the model share.
    """

    module: str
    use: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    def replay(self, model: nn.Module) -> nn.Module:
        names = dict(model.named_modules(remove_duplicate=False))
        for name in self._names:
            if name not in names:
                message = f'architecture.json replaces the module "{name}", which the model does not have'
                raise UserError("E140", message, did_you_mean(name, names))
            if names[name] is not names[self.module]:
                message = f'"{self.module}" and "{name}" are two modules; architecture.json replaces them as one'
                raise UserError("E140", message, "give the dense module from which the model was made")
        try:
            cls: Any = REPLACEMENTS.imported_member(self.use)
        except UserError as error:
            raise error.at(f'architecture.json replaces "{self.module}"') from error.__cause__
        try:
            replacement: nn.Module = cls.from_dense(names[self.module], **self.settings)
        except TypeError as error:
            message = f'architecture.json has wrong settings for "{self.module}": {error}'
            raise UserError("E141", message, "restore the file") from error
        return put(model, self._names, replacement)

    def to_data(self) -> dict[str, Any]:
        data = {"module": self.module, "use": self.use, "settings": dict(self.settings)}
        return {**data, "also": list(self.also)} if self.also else data

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Replace:
        module, use, settings = data.get("module"), data.get("use"), data.get("settings", {})
        if not isinstance(module, str) or not isinstance(use, str) or not isinstance(settings, Mapping):
            raise damaged('a replacement lacks "module" or "use", or has wrong "settings"')
        return Replace(module, use, settings, names_in(data, "also"))

    def replaces(self, tensor: str) -> bool:
        return not self.module or tensor.startswith(tuple(f"{name}." for name in self._names))

    @property
    def _names(self) -> tuple[str, ...]:
        return (self.module, *self.also)


_PLAIN = (bool, int, float, str, tuple, torch.dtype, type(None))
EDITS = Family("edit", ("model", "graph"), subclass_of(Edit))


def put(model: nn.Module, names: Sequence[str], module: nn.Module) -> nn.Module:
    """Put a module in the place of the one with these names, in place, and return the model; return `module` if the name is "".

    Plain attributes of the old module that the new one lacks, such as `in_features`, are copied, since code of the model may
    read them. Plain lists and dictionaries in which code keeps the module get the new one, too. Fused kernels of torch's
    transformer encoder, which take weights from modules instead of calling them, are turned off around the module.
    """
    old = model.get_submodule(names[0])
    for key, value in vars(old).items():
        if not key.startswith("_") and isinstance(value, _PLAIN) and not hasattr(module, key):
            setattr(module, key, value)
    if isinstance(module, Replacement):
        vars(module)["in_place"] = True  # from now on it also answers for the old module's weight
    for name in names:
        parts = name.split(".") if name else []
        for above in (model.get_submodule(".".join(parts[:count])) for count in range(len(parts))):
            if isinstance(above, nn.TransformerEncoderLayer):
                above.activation_relu_or_gelu = 0  # only the choice of the fused kernel reads it
            elif isinstance(above, nn.TransformerEncoder):
                above.use_nested_tensor = False
    if not names[0]:
        return module
    _put_in_plain_attributes(model, old, module)
    for name in names:
        set_attribute(model, name, module)
    return model


def _put_in_plain_attributes(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Let the lists, dictionaries and other plain attributes in which modules keep a module have another one in its place."""
    for holder in model.modules():
        for key, value in vars(holder).items():
            if key != "_modules" and any(part is old for part in pytree.tree_leaves(value)):
                vars(holder)[key] = pytree.tree_map(lambda part: new if part is old else part, value)


def set_attribute(model: nn.Module, name: str, value: nn.Module | Tensor) -> None:
    """Set a module or tensor of a model by its dotted name."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, value)


def slice_tensors(model: nn.Module, kept: Mapping[str, Mapping[int, list[int]]]) -> None:
    """Keep only the given indices of parameters and buffers, in place. Shared tensors stay shared.

    Args:
        model: is changed.
        kept: name of a tensor -> dimension -> kept indices.
    """
    named = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    for name, dimensions in kept.items():
        dense = named[name]
        cut = sliced_tensor(dense, dimensions)
        for other, value in named.items():
            if value is dense:
                set_attribute(model, other, cut)


def sliced_tensor(dense: Tensor, kept: Mapping[int, list[int]]) -> Tensor:
    """A copy with the given indices of some dimensions only; a parameter if the dense tensor is one."""
    tensor = dense.detach()
    for dimension, indices in kept.items():
        tensor = tensor.index_select(dimension, torch.tensor(indices, device=tensor.device))
    tensor = tensor.clone() if tensor.data_ptr() == dense.data_ptr() else tensor
    return nn.Parameter(tensor, requires_grad=dense.requires_grad) if isinstance(dense, nn.Parameter) else tensor


def set_attributes(model: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set attributes of modules, in place: name of a module -> attribute -> value. Lists are set as tuples."""
    for name, values in attributes.items():
        module = model.get_submodule(name)
        for attribute, value in values.items():
            setattr(module, attribute, tuple(value) if isinstance(value, list) else value)


def slices_in_text(kept: Mapping[str, Mapping[int, list[int]]]) -> dict[str, dict[str, str]]:
    """Convert kept indices to plain data; see `ranges`."""
    return {name: {str(d): ranges(indices) for d, indices in parts.items()} for name, parts in kept.items()}


def ranges(indices: Sequence[int]) -> str:
    """Write increasing indices as a string of ranges.

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
    """Read the indices that `ranges` wrote.

    Raises:
        ValueError: if the text does not have the format of `ranges`.
    """
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    if found != sorted(set(found)) or (found and found[0] < 0):
        raise ValueError(text)
    return found


def table_of_tables(data: Mapping[str, Any], key: str) -> Mapping[str, Mapping[str, Any]]:
    """The table of this key, whose values must be tables; an empty table if the key is missing.

    Raises:
        UserError: E141 if it is not a table of tables.
    """
    table = data.get(key, {})
    if not isinstance(table, Mapping) or not all(isinstance(entry, Mapping) for entry in table.values()):
        raise damaged(f'"{key}" is not a table of tables')
    return table


def names_in(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The list of names of this key; empty if the key is missing.

    Raises:
        UserError: E141 if it is not a list of strings.
    """
    names = data.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise damaged(f'"{key}" is not a list of names')
    return tuple(names)


def damaged(what: str) -> UserError:
    """The E141 error for a damaged `architecture.json`."""
    return UserError("E141", f"architecture.json is damaged: {what}", "restore the file")


def _may_be_set(module: nn.Module, attribute: str, value: Any) -> bool:
    """Whether a file may set this attribute: only public integers, and lists of integers, may be changed."""
    current = getattr(module, attribute, None) if not attribute.startswith("_") else None
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        return False
    return isinstance(current, (list, tuple)) if isinstance(value, (list, tuple)) else isinstance(current, int)
