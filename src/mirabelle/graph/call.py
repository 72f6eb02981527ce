"""A call of an operator in a program, with its arguments by the names of the operator's schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

Sizes: TypeAlias = tuple[int, ...]
_OF_DATA = 7919  # placeholder for a size that depends on data, such as the number of elements a mask selects; an unlikely width


@dataclass(frozen=True)
class Call:
    """A node that calls an operator.

    Args:
        node: a node of the program's graph.
        arguments: values by name, including defaults; a tensor is represented by the node that computes it.
    """

    node: fx.Node
    arguments: Mapping[str, Any]

    @staticmethod
    def of(node: fx.Node) -> Call:
        """Read the call from a node."""
        if not isinstance(node.target, torch._ops.OpOverload):
            return Call(node, {str(k): value for k, value in enumerate(node.args)})
        schema = node.target._schema.arguments
        arguments = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
        arguments |= {argument.name: value for argument, value in zip(schema, node.args, strict=False)}
        return Call(node, {**arguments, **node.kwargs})

    @property
    def name(self) -> str:
        """Name of the operator without its overload, such as "linear"."""
        return name_of(self.node)

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The argument of this name, or `default` if the operator has none."""
        return self.arguments.get(name, default)


def name_of(node: fx.Node) -> str:
    """Name of the operator that a node calls, without its overload, and with its namespace unless that is "aten"."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return str(getattr(node.target, "__name__", node.target))
    namespace, _, name = node.target.overloadpacket._qualified_op_name.partition("::")
    return name if namespace == "aten" else f"{namespace}.{name}"


def value_of(node: fx.Node) -> Any:
    """The result of a node as recorded by the trace: a fake tensor, a number, or a list of them."""
    return node.meta.get("val")


def sizes_of(value: Any) -> Sizes:
    """The shape of a traced tensor; dynamic sizes have the values of the example inputs."""
    return tuple(number_of(size) for size in value.shape)


def number_of(size: Any) -> int:
    """A size as an integer; for a dynamic size the value of the example inputs, read without adding a guard."""
    if not is_known(size):
        return _OF_DATA
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def is_known(size: Any) -> bool:
    """Whether a size is determined by the shapes of the example inputs, and does not depend on their values."""
    return not isinstance(size, torch.SymInt) or size.node.hint is not None


def is_free(size: Any) -> bool:
    """Whether a size may have other values than in the trace, such as the batch size.

    A size that the code of the model fixes is a symbolic number in the trace, too, but one without symbols.
    """
    return isinstance(size, torch.SymInt) and not size.node.expr.is_number


def is_tensor(value: Any) -> bool:
    """Whether an argument is a node whose result is a single tensor."""
    return isinstance(value, fx.Node) and isinstance(value_of(value), Tensor)


def tensors_in(value: Any) -> list[fx.Node]:
    """The nodes in an argument whose results are tensors, including those in nested lists and tuples."""
    if isinstance(value, (list, tuple)):
        return [node for part in value for node in tensors_in(part)]
    return [value] if is_tensor(value) else []
