"""What the inputs and outputs of an exported file are called, so that it can stand where another one stood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from onnx import GraphProto, ValueInfoProto

_TOLD = ("input_names", "output_names")


@dataclass(frozen=True)
class Names:
    """Of the inputs and the outputs of a model, in order; empty where it does not tell."""

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


def names_of(model: nn.Module) -> Names:
    """What a model tells by its attributes `input_names` and `output_names`, as one from an ONNX file does.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> net.output_names = ("scores",)
        >>> names_of(net)
        Names(inputs=(), outputs=('scores',))
    """
    found = [getattr(model, attribute, ()) for attribute in _TOLD]
    told = [
        tuple(names) if isinstance(names, (tuple, list)) and all(isinstance(n, str) for n in names) else () for names in found
    ]
    return Names(*told)


def keep_names(model: nn.Module, origin: nn.Module) -> None:
    """Let a model tell the names of the one that it has come from."""
    names = names_of(origin)
    for attribute, told in zip(_TOLD, (names.inputs, names.outputs), strict=True):
        if told:
            model.__dict__[attribute] = told


def rename_values(graph: GraphProto, values: Sequence[ValueInfoProto], names: Sequence[str]) -> tuple[str, ...]:
    """Call the inputs or the outputs of a graph by these names, wherever they stand; the names that they have now.

    Other values of such a name get another one. Nothing is changed, and none come back, where there are not as many names, or
    two alike, or the graph has branches, whose insides may speak of them.
    """
    branches = any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute)
    if branches or len(values) != len(names) or len(set(names)) < len(names):
        return ()
    new = dict(zip((value.name for value in values), names, strict=True))
    present = {name for node in graph.node for name in (*node.input, *node.output)}
    present |= {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    for name in names:
        if name in present and name not in new:
            new[name] = _free(name, present | set(names))
    _apply(graph, new)
    return tuple(names)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _apply(graph: GraphProto, new: Mapping[str, str]) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            changed = [new.get(name, name) for name in names]
            del names[:]
            names.extend(changed)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = new.get(value.name, value.name)
