"""A rewritten program as a module, for models whose own code does not work with other widths.

It holds the tensors under the names of the model and runs the operators of the trace on them, with arguments adapted to the new
widths. Convolutions and linear layers whose weights nothing else reads become modules, so that later steps find them. It can be
trained, exported and saved like any module. Dropout and batch statistics are missing, because the model was traced in eval
mode. Buffers that the code of the model updates are updated, too. Sizes that this code makes static are those of the trace, and
a branch of the code on a size holds for the sizes that take it: inputs of other sizes are refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from mirabelle.graph.call import Call, value_of
from mirabelle.graph.flow import Flow, Kept, Share
from mirabelle.graph.interpret import SKIPPED, result_of, sliced, written
from mirabelle.graph.sizes import Limits
from mirabelle.graph.trace import Program


@dataclass(frozen=True)
class _Register:
    """A reference, among arguments, to a value computed earlier."""

    number: int


@dataclass(frozen=True)
class _Part:
    """A reference, among arguments, to a size computed earlier times `stays` / `of`."""

    number: int
    stays: int
    of: int


_LAYERS: Mapping[Any, tuple[type[nn.Module], int]] = {  # module class, and number of spatial dimensions
    torch.ops.aten.linear.default: (nn.Linear, 0),
    torch.ops.aten.conv1d.default: (nn.Conv1d, 1),
    torch.ops.aten.conv2d.default: (nn.Conv2d, 2),
    torch.ops.aten.conv3d.default: (nn.Conv3d, 3),
}


@dataclass(frozen=True)
class _Instruction:
    """A call of an operator, or of a module given by its name, whose result is stored in a register.

    Registers that nothing reads after it, `ended`, are emptied.
    """

    register: int
    target: Callable[..., Any] | str
    arguments: Mapping[str, Any]
    ended: tuple[int, ...] = ()


class _Results:
    """Rebuilds the nested outputs of the model from a flat list; immutable, so copies of the module share it."""

    def __init__(self, spec: Any) -> None:
        self._spec = spec

    def of(self, leaves: list[Any]) -> Any:
        return pytree.tree_unflatten(leaves, self._spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Results:
        return self


class _Arguments:
    """Flattens and checks the arguments of a call; immutable, so copies of the module share it."""

    def __init__(self, program: Program, least: int) -> None:
        self._spec = program.exported.call_spec.in_spec
        inputs = [
            node for node in program.graph.nodes if node.op == "placeholder" and program.sources[node.name].kind == "input"
        ]
        values = [value_of(node) for node in inputs]
        self._limits = [
            [Limits.of(size, program, least) for size in value.shape] if isinstance(value, Tensor) else None for value in values
        ]

    def leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        try:
            leaves = list(self._spec.flatten_up_to(((args, kwargs), {})))
        except ValueError as error:
            raise TypeError(f"call the rewritten program with the same arguments as when it was traced: {error}") from error
        for value, limits in zip(leaves, self._limits, strict=True):
            if limits is not None and not _fits(value, limits):
                needed, given = ", ".join(map(str, limits)), ", ".join(map(str, value.shape))
                raise ValueError(f"the rewritten program holds for inputs of the sizes ({needed}); got ({given})")
        return leaves

    def __deepcopy__(self, memo: dict[int, Any]) -> _Arguments:
        return self


def _fits(value: Tensor, limits: Sequence[Limits]) -> bool:
    return value.ndim == len(limits) and all(limit.hold(own) for own, limit in zip(value.shape, limits, strict=True))


class Rewritten(nn.Module):
    """A module that runs a program without the removed units.

    Args:
        program: of the model.
        flow: of the program.
        kept: units that are kept.
        least: the fewest samples for which the program computes what the model computes: 1, or 2 if its code treats a single
            sample in another way.
        unsaved: tensors that the state dict of the model lacks and that of the program has.
    """

    def __init__(self, program: Program, flow: Flow, kept: Kept, least: int = 1, unsaved: Collection[str] = ()) -> None:
        super().__init__()
        self._numbers: dict[fx.Node, int] = {}
        self._inputs: list[int] = []
        self._held: dict[int, str] = {}
        self._instructions: list[_Instruction] = []
        self._picked: dict[tuple[int, int], int] = {}
        self._indices = 0
        self._arguments = _Arguments(program, least)
        self._results = _Results(program.exported.call_spec.out_spec)
        saved = program.saved.union(unsaved)
        tensors = {name: _own(tensor, program.tensors[name]) for name, tensor in sliced(program, flow, kept).items()}
        for name, first in program.first.items():  # in the model's order, so that shared tensors have the same first names
            if first in tensors:
                _register(self, name, tensors[first], saved=saved)
        for name, tensor in tensors.items():
            if name not in program.first:
                _register(self, name, tensor, saved=saved)
        for node in program.graph.nodes:
            self._take(node, program, flow, kept)
        self._instructions = self._with_ends()
        del self._numbers, self._picked

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Same arguments and outputs as the model's own forward."""
        known: dict[int, Any] = {number: self._tensor(name) for number, name in self._held.items()}
        known |= dict(zip(self._inputs, self._arguments.leaves(args, kwargs), strict=True))
        for instruction in self._instructions:
            filled, target = _filled(instruction.arguments, known), instruction.target
            known[instruction.register] = (
                self.get_submodule(target)(*filled.values()) if isinstance(target, str) else result_of(target, filled)
            )
            for past in instruction.ended:
                del known[past]
        for name, register in self._updates.items():
            self._tensor(name).copy_(known[register].detach())
        return self._results.of([_filled(part, known) for part in self._outputs])

    def _with_ends(self) -> list[_Instruction]:
        """The instructions, each with the registers that it is the last to read."""
        lasting = {*_registers_in(self._outputs), *self._updates.values()}
        changed = []
        for instruction in reversed(self._instructions):
            read = {instruction.register, *_registers_in(list(instruction.arguments.values()))}
            changed.append(replace(instruction, ended=tuple(sorted(read - lasting))))
            lasting |= read
        return changed[::-1]

    def _tensor(self, name: str) -> Tensor:
        module, _, attribute = name.rpartition(".")
        tensor: Tensor = getattr(self.get_submodule(module), attribute)
        return tensor

    def _take(self, node: fx.Node, program: Program, flow: Flow, kept: Kept) -> None:
        """Translate one node of the graph into an instruction."""
        if node.op == "output":
            outputs = program.exported.graph_signature.user_outputs
            parts = [part for part in node.args[0] if not isinstance(part, fx.Node) or part.name in outputs]  # type: ignore[union-attr]
            self._outputs = [self._template(part, flow, kept, constant=False) for part in parts]
            updates = [part for part in node.args[0] if isinstance(part, fx.Node) and part.name in program.updates]  # type: ignore[union-attr]
            self._updates = {program.updates[part.name]: self._read(part, flow, kept) for part in updates}
            return
        if node in flow.inside or (node.op == "call_function" and Call.of(node).name in SKIPPED):
            return
        number = self._numbers[node] = len(self._numbers) + len(self._picked)
        if node.op == "placeholder":
            source = program.sources[node.name]
            if source.kind == "input":
                self._inputs.append(number)
            else:
                self._held[number] = source.name
        elif node.target is operator.getitem:
            arguments = {"0": self._template(node.args[0], flow, kept, constant=True), "1": node.args[1]}
            self._instructions.append(_Instruction(number, operator.getitem, arguments))
        else:
            self._call(node, number, flow, kept)

    def _call(self, node: fx.Node, number: int, flow: Flow, kept: Kept) -> None:
        constant = node in flow.constants
        target, arguments = written(flow, kept, node)
        layer = None if constant else self._layer(target, arguments)
        if layer is not None:
            target, arguments = layer, {"input": arguments["input"]}
        filled = {name: self._template(value, flow, kept, constant=constant) for name, value in arguments.items()}
        self._instructions.append(_Instruction(number, target, filled))

    def _layer(self, target: Any, arguments: Mapping[str, Any]) -> str | None:
        """Make a module for an operator that alone reads its weights, and return its name; None for other operators."""
        if target not in _LAYERS:
            return None
        parts = {part: arguments[part] for part in ("weight", "bias") if arguments[part] is not None}
        registers = {part: self._numbers[node] for part, node in parts.items() if node in self._numbers}
        names = {part: self._held[number] for part, number in registers.items() if number in self._held}
        place = names.get("weight", "").rpartition(".")[0]
        own = all(len(node.users) == 1 and names.get(part) == f"{place}.{part}" for part, node in parts.items())
        if not place or not own or not _has_only(self.get_submodule(place), parts.keys()):
            return None
        tensors = {part: self._tensor(name) for part, name in names.items()}
        parent, _, last = place.rpartition(".")
        setattr(self.get_submodule(parent), last, _layer_of(target, arguments, tensors))
        for number in registers.values():
            del self._held[number]
        return place

    def _template(self, value: Any, flow: Flow, kept: Kept, *, constant: bool) -> Any:
        if isinstance(value, fx.Node):
            return _Register(self._numbers[value] if constant else self._read(value, flow, kept))
        if isinstance(value, Share):
            return _Part(self._numbers[value.node], value.stays, value.of)
        if isinstance(value, Tensor):
            return _Register(self._index(value))
        if isinstance(value, (list, tuple)):
            return [self._template(part, flow, kept, constant=constant) for part in value]
        return value

    def _read(self, node: fx.Node, flow: Flow, kept: Kept) -> int:
        """The register of a node; for a constant, one without the removed elements."""
        number = self._numbers[node]
        axes = flow.axes.get(node)
        if node not in flow.constants or not isinstance(axes, tuple):
            return number
        for dimension, axis in enumerate(flow.of(node)):
            if axis is not None and not kept.of(axis, len(axis)).all():
                if (number, dimension) not in self._picked:
                    index = self._index(torch.from_numpy(np.flatnonzero(kept.of(axis, len(axis)))))
                    into = self._picked[number, dimension] = len(self._numbers) + len(self._picked)
                    arguments = {"self": _Register(number), "dim": dimension, "index": _Register(index)}
                    self._instructions.append(_Instruction(into, torch.ops.aten.index_select.default, arguments))
                number = self._picked[number, dimension]
        return number

    def _index(self, index: Tensor) -> int:
        """A register for an index tensor, kept in a non-persistent buffer, since it follows from the cut."""
        name, self._indices = f"index_{self._indices}", self._indices + 1
        self.register_buffer(name, index, persistent=False)
        number = -self._indices
        self._held[number] = name
        return number


def _own(tensor: Tensor, dense: Tensor) -> Tensor:
    """A copy that is a parameter if the dense tensor is one."""
    own = tensor.detach().clone() if tensor.data_ptr() == dense.data_ptr() else tensor.detach()
    return nn.Parameter(own, requires_grad=dense.requires_grad) if isinstance(dense, nn.Parameter) else own


def _register(module: nn.Module, name: str, tensor: Tensor, *, saved: frozenset[str]) -> None:
    """Register a tensor under its name, creating the modules that contain it."""
    *path, last = name.split(".")
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(last, tensor)
    else:
        module.register_buffer(last, tensor, persistent=name in saved)


def _layer_of(target: Any, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The module equivalent to an operator with these parameters."""
    kind, spatial = _LAYERS[target]
    outputs, inputs, *sides = tensors["weight"].shape
    settings: dict[str, Any] = {"bias": "bias" in tensors, "device": "meta"}
    if spatial:
        geometry = {name: list(arguments[name]) for name in ("stride", "padding", "dilation")}
        settings |= {name: tuple(numbers * spatial if len(numbers) == 1 else numbers) for name, numbers in geometry.items()}
        settings |= {"kernel_size": tuple(sides), "groups": arguments["groups"]}
    layer = kind(inputs * settings.get("groups", 1), outputs, **settings)
    for name, tensor in tensors.items():
        setattr(layer, name, tensor)
    return layer


def _has_only(module: nn.Module, names: Collection[str]) -> bool:
    """Whether a module is a plain container of exactly these parameters."""
    own = {name for name, parameter in module._parameters.items() if parameter is not None}
    return type(module) is nn.Module and own == set(names) and not module._buffers and not module._modules


def _registers_in(value: Any) -> Iterator[int]:
    if isinstance(value, (_Register, _Part)):
        yield value.number
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _registers_in(part)


def _filled(value: Any, known: Mapping[int, Any]) -> Any:
    if isinstance(value, _Register):
        return known[value.number]
    if isinstance(value, _Part):
        return known[value.number] * value.stays // value.of
    if isinstance(value, Mapping):
        return {name: _filled(part, known) for name, part in value.items()}
    return [_filled(part, known) for part in value] if isinstance(value, (list, tuple)) else value
