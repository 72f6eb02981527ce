"""Names of the inputs and outputs of exported files, so that a compressed ONNX file can replace the original one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from onnx import GraphProto, ValueInfoProto

_ATTRIBUTES = ("input_names", "output_names")


@dataclass(frozen=True)
class Names:
    """The names of the inputs and outputs of a model, in order; empty if the model does not define them."""

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


def names_of(model: nn.Module) -> Names:
    """The names that a model defines by its attributes `input_names` and `output_names`, as models from ONNX files do.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> net.output_names = ("scores",)
        >>> names_of(net)
        Names(inputs=(), outputs=('scores',))
    """
    values = [getattr(model, attribute, ()) for attribute in _ATTRIBUTES]
    defined = [
        tuple(names) if isinstance(names, (tuple, list)) and all(isinstance(n, str) for n in names) else () for names in values
    ]
    return Names(*defined)


def keep_names(model: nn.Module, origin: nn.Module) -> None:
    """Copy the names of inputs and outputs from the model that a compressed model was made from."""
    names = names_of(origin)
    for attribute, defined in zip(_ATTRIBUTES, (names.inputs, names.outputs), strict=True):
        if defined:
            model.__dict__[attribute] = defined


def rename_values(graph: GraphProto, values: Sequence[ValueInfoProto], names: Sequence[str]) -> tuple[str, ...]:
    """Rename the inputs or outputs of a graph, in place.

    Other values that already have one of the names are renamed, too. Nothing is changed if the number of names is wrong, if a
    name occurs twice, or if the graph has subgraphs (branches, loops), which may refer to the values.

    Args:
        graph: is changed.
        values: `graph.input` or `graph.output`.
        names: new names, one per value.

    Returns:
        The new names; () if nothing was changed.
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
