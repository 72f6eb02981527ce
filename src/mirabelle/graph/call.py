"""One operator of a program with its arguments by name, as its schema has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

Sizes: TypeAlias = tuple[int, ...]
_OF_DATA = 7919  # stands for a size that only the data tell, as of what a mask selects; no width is likely to be it


@dataclass(frozen=True)
class Call:
    """A node that calls an operator.

    Args:
        node: of the program's graph.
        arguments: by name, with defaults for what is not given; nodes stand for tensors.
    """

    node: fx.Node
    arguments: Mapping[str, Any]

    @staticmethod
    def of(node: fx.Node) -> Call:
        if not isinstance(node.target, torch._ops.OpOverload):
            return Call(node, {str(k): value for k, value in enumerate(node.args)})
        schema = node.target._schema.arguments
        found = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
        found |= {argument.name: value for argument, value in zip(schema, node.args, strict=False)}
        return Call(node, {**found, **node.kwargs})

    @property
    def name(self) -> str:
        """Of the operator without its overload: "linear"."""
        return name_of(self.node)

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.arguments.get(name, default)


def name_of(node: fx.Node) -> str:
    """Of the operator that a node calls, without its overload; with its namespace where that is not "aten"."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return str(getattr(node.target, "__name__", node.target))
    namespace, _, name = node.target.overloadpacket._qualified_op_name.partition("::")
    return name if namespace == "aten" else f"{namespace}.{name}"


def value_of(node: fx.Node) -> Any:
    """What the trace recorded of a node's result: fake tensors, numbers."""
    return node.meta.get("val")


def sizes_of(value: Any) -> Sizes:
    """The sizes of a traced tensor, free ones as the example had them."""
    return tuple(number_of(size) for size in value.shape)


def number_of(size: Any) -> int:
    """A size as a number; for a free one that of the example, which no guard comes to hold."""
    if not is_known(size):
        return _OF_DATA
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def is_known(size: Any) -> bool:
    """Whether a size follows from the sizes of the example, and not from its data."""
    return not isinstance(size, torch.SymInt) or size.node.hint is not None


def is_tensor(value: Any) -> bool:
    return isinstance(value, fx.Node) and isinstance(value_of(value), Tensor)


def tensors_in(value: Any) -> list[fx.Node]:
    """The nodes in an argument that stand for tensors, lists and tuples looked through."""
    if isinstance(value, (list, tuple)):
        return [node for part in value for node in tensors_in(part)]
    return [value] if is_tensor(value) else []
