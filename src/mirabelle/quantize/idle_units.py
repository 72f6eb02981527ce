"""Units that no longer do anything: what remains of their weights is set to zero, so that a packed file need not hold it.

A unit that nobody reads needs no weights and no bias. A unit without weights whose activation is 0 for its bias is 0 for every
input, so nobody needs to read it. Neither changes an output.

Looked at are only layers from which each unit goes to other layers through operators that have one operand and do not mix
units, such as activations and pooling: whatever else reads a unit, or is added to it, leaves its layer alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from mirabelle.errors import UserError
from mirabelle.graph.call import is_tensor, name_of
from mirabelle.graph.groups import AxisGroup, Member, axes_of_tensors, groups_of
from mirabelle.graph.propagate import propagated
from mirabelle.graph.trace import Program, traced
from mirabelle.quantize.dense_layers import CONVOLUTIONS
from mirabelle.task.batch import arguments_of, call

if TYPE_CHECKING:
    from mirabelle.graph.units import Axis
    from mirabelle.task.batch import Inputs

_TURNS = 10  # a unit that falls idle may leave others idle; more turns than layers in a row are not needed
_WRITES, _READS = 0, 1  # dimensions of a weight
_LAYERS = ("linear", "conv1d", "conv2d", "conv3d")
_UNIT_BY_UNIT = {
    "relu", "relu_", "relu6", "relu6_", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "celu",
    "gelu", "silu", "silu_", "mish", "sigmoid", "tanh", "hardsigmoid", "hardswish", "hardswish_", "softplus", "dropout",
    "feature_dropout", "clone", "contiguous", "alias", "detach", "flatten", "view", "reshape", "_unsafe_view", "max_pool1d",
    "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
}  # fmt: skip


@torch.no_grad()
def silenced(model: nn.Module, names: Collection[str], inputs: Inputs) -> dict[str, int]:
    """Set the weights and biases of idle units to zero, in place.

    Args:
        model: in eval mode.
        names: of layers whose tensors may be changed: of class Linear, or convolutions.
        inputs: an example, with which the model is traced and run.

    Returns:
        The numbers that have become zero in each tensor; nothing for a model that cannot be traced.
    """
    plain = {name for name in names if _is_plain(model.get_submodule(name))}
    tensors = {f"{name}.{part}": getattr(model.get_submodule(name), part) for name in plain for part in ("weight", "bias")}
    values = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    before = {name: int(tensor.count_nonzero()) for name, tensor in values.items()}
    try:
        positional, named = arguments_of(inputs)
        program = traced(model, positional, named)
        flow = propagated(program)
    except UserError:
        return {}
    axes, pairs = axes_of_tensors(program, flow), set(_pairs(program, plain))
    groups = [
        _Places(group, {one: axes[one.name][one.dimension][0] for one in group.members})
        for group in groups_of(program, flow)
        if _layers_of(group) in pairs
    ]
    for _ in range(_TURNS):
        entering = _entering(model, plain, inputs)
        changed = [places.silence(values, entering) for places in groups]
        if not any(changed):
            break
    after = {name: before[name] - int(tensor.count_nonzero()) for name, tensor in values.items()}
    return {name: count for name, count in after.items() if count}


_Pair = tuple[str, frozenset[str]]  # a layer, and those that read it


def _pairs(program: Program, names: Collection[str]) -> Iterator[_Pair]:
    """Layers whose outputs go to other layers of these names alone, unit by unit."""
    uses: dict[fx.Node, str] = {}
    for node in program.graph.nodes:
        source = program.sources.get(node.name) if node.op == "placeholder" else None
        name, _, part = source.name.rpartition(".") if source is not None else ("", "", "")
        if name in names and part == "weight" and len(node.users) == 1 and len(program.names.get(f"{name}.weight", ())) <= 1:
            (user,) = node.users
            if name_of(user) in _LAYERS and len(user.args) > 1 and user.args[1] is node:
                uses[user] = name
    for node, name in uses.items():
        readers = _readers(node, uses)
        if readers:
            yield name, frozenset(readers)


def _readers(node: fx.Node, uses: Mapping[fx.Node, str]) -> set[str]:
    """The layers that read a value through operators with one operand; none if anything else does."""
    found: set[str] = set()
    for user in node.users:
        if user.all_input_nodes.count(node) != 1:
            return set()
        if user in uses and user.args[0] is node:
            found.add(uses[user])
        elif name_of(user) in _UNIT_BY_UNIT and [one for one in user.all_input_nodes if is_tensor(one)] == [node]:
            further = _readers(user, uses)
            if not further:
                return set()
            found |= further
        else:
            return set()
    return found


def _layers_of(group: AxisGroup) -> _Pair | None:
    """The layer that writes the units of a group, and those that read them; None if it has other members."""
    parts = [(*one.name.rpartition(".")[::2], one.dimension) for one in group.members]
    writers = {name for name, _, dimension in parts if dimension == _WRITES}
    readers = frozenset(name for name, part, dimension in parts if dimension == _READS and part == "weight")
    known = all(part in ("weight", "bias") and dimension in (_WRITES, _READS) for _, part, dimension in parts)
    return (writers.pop(), readers) if len(writers) == 1 and known else None


def _is_plain(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, CONVOLUTIONS) and layer.groups == 1)


def _entering(model: nn.Module, names: Collection[str], inputs: Inputs) -> dict[str, Tensor]:
    """For each layer, which elements of its input's channels are not 0 somewhere, (channels,)."""
    found: dict[str, Tensor] = {}

    def seen(name: str, given: Tensor | None = None) -> None:
        if given is None:
            return
        layer: Any = model.get_submodule(name)
        place = given.ndim - 1 if isinstance(layer, nn.Linear) else given.ndim - layer.weight.ndim + 1
        some = (given != 0).movedim(place, 0).flatten(1).any(1)
        found[name] = found[name] | some if name in found else some

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: seen(name, *given)) for name in names
    ]
    try:
        call(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class _Places:
    """Where the elements of a group's units are.

    Args:
        group: of the model's units.
        axes: of the dimension of each member.
    """

    def __init__(self, group: AxisGroup, axes: Mapping[Member, Axis]) -> None:
        self._group, self._axes = group, axes
        weights = [one for one in group.members if one.name.endswith(".weight")]
        self._readers = [one for one in weights if one.dimension == _READS]
        self._writers = [one for one in weights if one.dimension == _WRITES]

    def silence(self, values: Mapping[str, Tensor], entering: Mapping[str, Tensor]) -> bool:
        """Set what idle units have left to zero; returns whether anything has changed."""
        changed = False
        if not all(_layer(one) in entering for one in self._readers):  # one that is not called as a layer
            return False
        writing = [one for one in self._group.members if one.dimension == _WRITES]
        for unit in self._group.units.tolist():
            read = any(bool(self._part(one, unit, values).any()) for one in self._readers)
            written = any(bool(self._part(one, unit, values).any()) for one in self._writers)
            seen = any(bool(entering[_layer(one)][self._elements(one, unit)].any()) for one in self._readers)
            for one in writing if not read else self._readers if not written and not seen else ():
                if bool(self._part(one, unit, values).any()):
                    values[one.name].index_fill_(one.dimension, self._elements(one, unit), 0.0)
                    changed = True
        return changed

    def _part(self, member: Member, unit: int, values: Mapping[str, Tensor]) -> Tensor:
        return values[member.name].index_select(member.dimension, self._elements(member, unit))

    def _elements(self, member: Member, unit: int) -> Tensor:
        axis = self._axes[member]
        assert axis is not None, "a member has an axis"
        return torch.from_numpy(np.flatnonzero(axis[:, member.column] == unit))


def _layer(member: Member) -> str:
    return member.name.removesuffix(".weight")
