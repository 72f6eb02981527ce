"""Ties: tensors that have several names in a model, such as the table of an embedding that is the weight of an output layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mirabelle.errors import UserError, did_you_mean
from mirabelle.model.architecture import architecture_of, attach
from mirabelle.model.edits import Edit, damaged, names_in
from mirabelle.model.state import memory_of


@dataclass(frozen=True)
class Tie(Edit):
    """Makes several tensors one: all of them become the first.

    Args:
        tensors: names of parameters or buffers of one shape and type.
    """

    tensors: tuple[str, ...]

    def replay(self, model: nn.Module) -> nn.Module:
        known = named_tensors(model)
        for name in self.tensors:
            if name not in known:
                message = f'architecture.json ties the tensor "{name}", which the model does not have'
                raise UserError("E140", message, did_you_mean(name, known))
        first, others = self.tensors[0], self.tensors[1:]
        for name in others:
            one, other = known[first], known[name]
            if (one.shape, one.dtype) != (other.shape, other.dtype):
                message = f'"{first}" is {tuple(one.shape)}, {one.dtype}, and "{name}" is {tuple(other.shape)}, {other.dtype}'
                raise UserError("E140", f"architecture.json ties two tensors, but {message}", "give the dense module")
            owner, _, last = name.rpartition(".")
            module: Any = model.get_submodule(owner)
            parameters, buffers = module._parameters, module._buffers
            own, other_kind = (parameters, buffers) if isinstance(one, nn.Parameter) else (buffers, parameters)
            other_kind.pop(last, None)
            own[last] = one
        return model

    def to_data(self) -> dict[str, Any]:
        return {"tensors": list(self.tensors)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Tie:
        names = names_in(data, "tensors")
        if len(names) < 2:  # noqa: PLR2004 (a tie has two ends)
            raise damaged("a tie of fewer than two tensors")
        return Tie(names)


def tie(model: nn.Module, tensors: Sequence[str]) -> nn.Module:
    """Let several names of a model stand for one tensor, in place, and record the edit.

    Args:
        model: is changed in place.
        tensors: names of parameters or buffers of one shape and type; the first gives the values.

    Raises:
        UserError: E140 if a tensor is missing, or has another shape or type.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        >>> model = tie(model, ["0.weight", "1.weight"])
        >>> model[0].weight is model[1].weight
        True
    """
    edit = Tie(tuple(tensors))
    record = architecture_of(model).with_edit(edit)
    model = edit.replay(model)
    attach(model, record)
    return model


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, under all their names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def all_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """First name of each tensor of a model -> all its names, the first included.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
        >>> model[1].weight = model[0].weight
        >>> all_names(model)
        {'0.weight': ('0.weight', '1.weight'), '0.bias': ('0.bias',)}
    """
    found: dict[Hashable, list[str]] = defaultdict(list)
    for name, tensor in named_tensors(model).items():
        found[memory_of(tensor)].append(name)
    return {names[0]: tuple(names) for names in found.values()}


def tied_by_memory(model: nn.Module) -> bool:
    """Whether two parameters or buffers are different tensors with the same numbers in memory (`b.data = a.data`)."""
    known = named_tensors(model)
    return any(len({id(known[name]) for name in names}) > 1 for names in all_names(model).values())


def lost_ties(before: nn.Module, after: nn.Module) -> list[tuple[str, ...]]:
    """The names that stood for one tensor before a step and stand for several after it."""
    known = named_tensors(after)
    found = (tuple(name for name in names if name in known) for names in all_names(before).values())
    return [names for names in found if len({memory_of(known[name]) for name in names}) > 1]
