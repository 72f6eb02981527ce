"""The rewritten program as a module, for models whose own code does not follow their widths.

It holds the tensors under the model's own names and runs the operators of the trace on them, with literals that fit.
Convolutions and linear layers whose weights nothing else reads are modules, so that steps find them. It trains, exports and
saves as any module does; what only happens in training mode, dropout and batch statistics, is left out, because the trace was
one of eval mode. Buffers that its code sets are set, too. Sizes that its code fixes are those of the trace: `len(x)` fixes the
batch, for one, `x.shape[0]` does not.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from mirabelle.graph.call import Call, value_of
from mirabelle.graph.flow import Flow, Kept, Share
from mirabelle.graph.interpret import SKIPPED, result_of, sliced, written
from mirabelle.graph.trace import Program


@dataclass(frozen=True)
class _Register:
    """Stands in arguments for a value computed before."""

    number: int


@dataclass(frozen=True)
class _Part:
    """Stands in arguments for a share of a size computed before."""

    number: int
    stays: int
    of: int


_LAYERS: Mapping[Any, tuple[type[nn.Module], int]] = {  # and dimensions of places
    torch.ops.aten.linear.default: (nn.Linear, 0),
    torch.ops.aten.conv1d.default: (nn.Conv1d, 1),
    torch.ops.aten.conv2d.default: (nn.Conv2d, 2),
}


@dataclass(frozen=True)
class _Instruction:
    """One operator, or by its name a module that is called with one tensor: the result goes into a register."""

    register: int
    target: Callable[..., Any] | str
    arguments: Mapping[str, Any]


class _Results:
    """What the model returns, from the tensors in it; shared by copies of a module, since it never changes."""

    def __init__(self, spec: Any) -> None:
        self._spec = spec

    def of(self, leaves: list[Any]) -> Any:
        return pytree.tree_unflatten(leaves, self._spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Results:
        return self


class _Arguments:
    """What the model is called with: by position and by name, names in any order; shared by copies, too."""

    def __init__(self, program: Program) -> None:
        self._spec = program.exported.call_spec.in_spec
        inputs = [
            node for node in program.graph.nodes if node.op == "placeholder" and program.sources[node.name].kind == "input"
        ]
        values = [value_of(node) for node in inputs]
        self._shapes = [_fixed(value) if isinstance(value, Tensor) else None for value in values]

    def leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        try:
            given = list(self._spec.flatten_up_to(((args, kwargs), {})))
        except ValueError as error:
            raise TypeError(f"a rewritten program is called as its trace was: {error}") from error
        for value, shape in zip(given, self._shapes, strict=True):
            if shape is not None and not _fits(value, shape):
                raise ValueError(f"a rewritten program has the sizes of its trace, {shape}; got {tuple(value.shape)}")
        return given

    def __deepcopy__(self, memo: dict[int, Any]) -> _Arguments:
        return self


def _fixed(value: Tensor) -> tuple[int | None, ...]:
    """The sizes of a traced tensor; None for those left free."""
    return tuple(None if isinstance(size, torch.SymInt) else size for size in value.shape)


def _fits(value: Tensor, shape: Sequence[int | None]) -> bool:
    return value.ndim == len(shape) and all(size in (None, own) for own, size in zip(value.shape, shape, strict=True))


class Rewritten(nn.Module):
    """A program without what goes.

    Args:
        program: of the model.
        flow: of the program.
        kept: which units stay.
    """

    def __init__(self, program: Program, flow: Flow, kept: Kept) -> None:
        super().__init__()
        self._numbers: dict[fx.Node, int] = {}
        self._inputs: list[int] = []
        self._held: dict[int, str] = {}
        self._instructions: list[_Instruction] = []
        self._picked: dict[tuple[int, int], int] = {}
        self._indices = 0
        self._arguments = _Arguments(program)
        self._results = _Results(program.exported.call_spec.out_spec)
        tensors = {name: _own(tensor, program.tensors[name]) for name, tensor in sliced(program, flow, kept).items()}
        for name, names in program.names.items():
            if name in tensors:
                _held_under(self, names, tensors[name], saved=program.saved)
        for name, tensor in tensors.items():
            if name not in program.names:
                _held_under(self, (name,), tensor, saved=program.saved)
        for node in program.graph.nodes:
            self._take(node, program, flow, kept)
        del self._numbers, self._picked

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own."""
        known: dict[int, Any] = {number: self._tensor(name) for number, name in self._held.items()}
        known |= dict(zip(self._inputs, self._arguments.leaves(args, kwargs), strict=True))
        for instruction in self._instructions:
            filled, target = _filled(instruction.arguments, known), instruction.target
            known[instruction.register] = (
                self.get_submodule(target)(*filled.values()) if isinstance(target, str) else result_of(target, filled)
            )
        for name, register in self._updates.items():
            self._tensor(name).copy_(known[register].detach())
        return self._results.of([_filled(part, known) for part in self._outputs])

    def _tensor(self, name: str) -> Tensor:
        place, _, last = name.rpartition(".")
        found: Tensor = getattr(self.get_submodule(place), last)
        return found

    def _take(self, node: fx.Node, program: Program, flow: Flow, kept: Kept) -> None:
        """One node of the graph, as an instruction."""
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
        """The name of a module made for an operator that alone reads its weights; None where these are not a layer's own."""
        if target not in _LAYERS:
            return None
        parts = {part: arguments[part] for part in ("weight", "bias") if arguments[part] is not None}
        held = {part: self._numbers[node] for part, node in parts.items() if node in self._numbers}
        names = {part: self._held[number] for part, number in held.items() if number in self._held}
        place = names.get("weight", "").rpartition(".")[0]
        own = all(len(node.users) == 1 and names.get(part) == f"{place}.{part}" for part, node in parts.items())
        if not place or not own or not _holds_alone(self.get_submodule(place), parts.keys()):
            return None
        tensors = {part: self._tensor(name) for part, name in names.items()}
        parent, _, last = place.rpartition(".")
        setattr(self.get_submodule(parent), last, _layer_of(target, arguments, tensors))
        for number in held.values():
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
        """The register of a node, of a constant without the elements that go."""
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
        """A register that holds whole numbers, kept as a buffer that is not saved: it follows from the cut."""
        name, self._indices = f"index_{self._indices}", self._indices + 1
        self.register_buffer(name, index, persistent=False)
        number = -self._indices
        self._held[number] = name
        return number


def _own(tensor: Tensor, dense: Tensor) -> Tensor:
    """A copy that is a parameter where the dense tensor is one."""
    own = tensor.detach().clone()
    return nn.Parameter(own, requires_grad=dense.requires_grad) if isinstance(dense, nn.Parameter) else own


def _held_under(module: nn.Module, names: Sequence[str], tensor: Tensor, *, saved: frozenset[str]) -> None:
    """A tensor under all its names, in modules made for it."""
    for name in names:
        holder = module
        *path, last = name.split(".")
        for part in path:
            if part not in holder._modules:
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        if isinstance(tensor, nn.Parameter):
            holder.register_parameter(last, tensor)
        else:
            holder.register_buffer(last, tensor, persistent=name in saved)


def _layer_of(target: Any, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The module that an operator is, with these parameters."""
    kind, places = _LAYERS[target]
    outputs, inputs, *sides = tensors["weight"].shape
    settings: dict[str, Any] = {"bias": "bias" in tensors, "device": "meta"}
    if places:
        given = {name: list(arguments[name]) for name in ("stride", "padding", "dilation")}
        settings |= {name: tuple(numbers * places if len(numbers) == 1 else numbers) for name, numbers in given.items()}
        settings |= {"kernel_size": tuple(sides), "groups": arguments["groups"]}
    layer = kind(inputs * settings.get("groups", 1), outputs, **settings)
    for name, tensor in tensors.items():
        setattr(layer, name, tensor)
    return layer


def _holds_alone(module: nn.Module, names: Collection[str]) -> bool:
    """Whether a module was made to hold just these parameters."""
    held = {name for name, parameter in module._parameters.items() if parameter is not None}
    return type(module) is nn.Module and held == set(names) and not module._buffers and not module._modules


def _filled(value: Any, known: Mapping[int, Any]) -> Any:
    if isinstance(value, _Register):
        return known[value.number]
    if isinstance(value, _Part):
        return known[value.number] * value.stays // value.of
    if isinstance(value, Mapping):
        return {name: _filled(part, known) for name, part in value.items()}
    return [_filled(part, known) for part in value] if isinstance(value, (list, tuple)) else value
