"""Where tensors of which nothing can be removed come from, so that a reason names the cause and not the last operator."""

from __future__ import annotations

from torch import Tensor, fx

from mirabelle.graph.call import sizes_of, value_of
from mirabelle.graph.flow import Flow
from mirabelle.graph.rules.elementwise import is_elementwise
from mirabelle.graph.trace import Program, described


class WholeTensors:
    """Remembers, for tensors of which no element can be removed, where that comes from: an input, a constant, an operator."""

    def __init__(self, flow: Flow, program: Program) -> None:
        self._flow, self._program = flow, program
        self._origins: dict[fx.Node, str] = {}

    def note(self, node: fx.Node) -> None:
        """Remember a node whose axes are known."""
        if not isinstance(value_of(node), Tensor) or any(axis is not None for axis in self._flow.of(node)):
            return
        source = self._program.sources.get(node.name)
        origins = [self._origins[part] for part in node.all_input_nodes if part in self._origins]
        if node.op == "placeholder" and source is not None:
            self._origins[node] = f'the {source.kind} "{source.name}"'
        else:
            self._origins[node] = origins[0] if origins else f"the result of {described(node)}"

    def joined(self, node: fx.Node) -> str:
        """In words, the whole tensor whose elements an elementwise node joins with others; "" if there is none."""
        if not is_elementwise(node):
            return ""
        operands = [part for part in node.all_input_nodes if isinstance(value_of(part), Tensor)]
        sides = [list(zip(self._flow.of(part)[::-1], sizes_of(value_of(part))[::-1], strict=True)) for part in operands]
        for operand, side in zip(operands, sides, strict=True):
            for d, (axis, size) in enumerate(side):
                meets = any(d < len(other) and other[d][0] is not None and other[d][1] == size for other in sides)
                if axis is None and size > 1 and meets and operand in self._origins:
                    return f" with {self._origins[operand]}"
        return ""
