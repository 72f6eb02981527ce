"""What a program costs when units are gone: parameters, and multiply-accumulates of one sample, without running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import fx

from mirabelle.graph.call import Call, sizes_of, value_of
from mirabelle.graph.flow import Flow, Kept
from mirabelle.graph.groups import axes_of_tensors, groups_of
from mirabelle.graph.interpret import kept_without
from mirabelle.graph.trace import Program


@dataclass(frozen=True)
class GroupCost:
    """An axis group in words and numbers.

    Args:
        name: of the first dimension that it touches.
        units: how many it has.
        members: every "tensor:dimension" that goes with them.
        parameters: that one unit takes with it.
        macs: multiply-accumulates of one sample that one unit takes with it.
    """

    name: str
    units: int
    members: tuple[str, ...]
    parameters: int
    macs: int

    def to_data(self) -> dict[str, Any]:
        return asdict(self)


def costs_of(program: Program, flow: Flow, batch: int) -> list[GroupCost]:
    """What each group is made of, and what one of its units costs while all others stay."""
    groups, whole = groups_of(program, flow), kept_without(flow, np.zeros(0, np.int64))
    parameters, macs = parameters_left(program, flow, whole), multiply_accumulates(flow, whole, batch)
    found = []
    for group in groups:
        without = kept_without(flow, group.units[:1])
        found.append(
            GroupCost(
                group.name,
                len(group),
                tuple(f"{member.name}:{member.dimension}" for member in group.members),
                parameters - parameters_left(program, flow, without),
                macs - multiply_accumulates(flow, without, batch),
            )
        )
    return found


def parameters_left(program: Program, flow: Flow, kept: Kept) -> int:
    """How many parameters stay; tied ones count once, those that the program does not use as they are."""
    axes = axes_of_tensors(program, flow)
    used = {source.name for source in program.sources.values() if source.kind == "parameter"}
    return sum(math.prod(kept.count(axis, size) for axis, size in axes[name]) for name in used)


def multiply_accumulates(flow: Flow, kept: Kept, batch: int) -> int:
    """Of one sample: products that are summed, in convolutions, matrix products and attention.

    Args:
        flow: of the program.
        kept: which units stay.
        batch: samples of the example that was traced.
    """
    calls = [(node, _COUNTS.get(Call.of(node).name)) for node in flow.axes if node.op == "call_function"]
    return sum(count(flow, kept, Call.of(node)) for node, count in calls if count is not None) // batch


def _left(flow: Flow, kept: Kept, node: fx.Node) -> list[int]:
    """The sizes of a tensor when units are gone."""
    return [kept.count(axis, size) for axis, size in zip(flow.of(node), sizes_of(value_of(node)), strict=True)]


def _linear(flow: Flow, kept: Kept, call: Call) -> int:
    return math.prod(_left(flow, kept, call.node)) * _left(flow, kept, call["weight"])[-1]


def _convolution(flow: Flow, kept: Kept, call: Call) -> int:
    weight = _left(flow, kept, call["weight"])
    transposed = "transpose" in call.name or bool(call.get("transposed"))
    places = _left(flow, kept, call["input"]) if transposed else _left(flow, kept, call.node)
    return math.prod(places) * math.prod(weight[1:])


def _matmul(flow: Flow, kept: Kept, call: Call) -> int:
    nodes = [value for value in call.arguments.values() if isinstance(value, fx.Node)]
    summed = _left(flow, kept, nodes[1 if "add" in call.name else 0])[-1]
    return math.prod(_left(flow, kept, call.node)) * summed


def _attention(flow: Flow, kept: Kept, call: Call) -> int:
    query, key = (_left(flow, kept, call[name]) for name in ("query", "key"))
    value = _left(flow, kept, call["value"])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _einsum(flow: Flow, kept: Kept, call: Call) -> int:
    terms = str(call["equation"]).replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, node in zip(terms, call["tensors"], strict=True):
        sizes |= {letter: max(size, sizes.get(letter, 1)) for letter, size in zip(term, _left(flow, kept, node), strict=False)}
    return math.prod(sizes.values()) if len(terms) > 1 else 0


_COUNTS: Mapping[str, Callable[[Flow, Kept, Call], int]] = {
    "linear": _linear,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolution),
    **dict.fromkeys(("matmul", "mm", "bmm", "addmm", "baddbmm"), _matmul),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
}
