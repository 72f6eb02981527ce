"""What a program costs when units are gone: parameters, and multiply-accumulates of one sample, without running it.

Every cost is a sum of products of lengths: a linear layer costs rows × inputs × outputs. Counted, they give the cost of a cut
exactly; written as polynomials in the fractions that the groups keep, they tell a planner what any cut would cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from torch import fx

from mirabelle.graph.call import Call, sizes_of, value_of
from mirabelle.graph.flow import Flow, Kept
from mirabelle.graph.groups import AxisGroup, axes_of_tensors, groups_of
from mirabelle.graph.interpret import kept_without
from mirabelle.graph.trace import Program
from mirabelle.graph.units import Array, Axis

Length: TypeAlias = tuple[Axis, int]  # of a dimension: what it is made of, and its size when nothing is gone
Product: TypeAlias = tuple[Length, ...]
Polynomial: TypeAlias = dict[tuple[int, ...], float]  # by numbers of groups, each as often as its fraction is a factor


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
    return counted(parameter_products(program, flow), kept)


def multiply_accumulates(flow: Flow, kept: Kept, batch: int) -> int:
    """Of one sample: products that are summed, in convolutions, matrix products and attention.

    Args:
        flow: of the program.
        kept: which units stay.
        batch: samples of the example that was traced.
    """
    return counted((product for _, product in mac_products(flow)), kept) // batch


def parameter_products(program: Program, flow: Flow) -> Iterator[Product]:
    """One for each parameter that the program uses."""
    axes = axes_of_tensors(program, flow)
    used = {source.name: None for source in program.sources.values() if source.kind == "parameter"}
    return (axes[name] for name in used)


def mac_products(flow: Flow) -> Iterator[tuple[fx.Node, Product]]:
    """Those of a whole batch, with the operators that they belong to."""
    for node in flow.axes:
        lengths = _LENGTHS.get(Call.of(node).name) if node.op == "call_function" else None
        for product in lengths(flow, Call.of(node)) if lengths is not None else ():
            yield node, product


def counted(products: Iterable[Product], kept: Kept) -> int:
    """What the products come to when units are gone."""
    return sum(math.prod(kept.count(axis, size) for axis, size in product) for product in products)


def polynomial_of(products: Iterable[Product], flow: Flow, groups: Sequence[AxisGroup]) -> Polynomial:
    """The sum of the products, in the fractions of units that the groups keep; what belongs to no group stays.

    Exact where the groups that meet in an axis meet as a grid, as heads and places within heads do; elsewhere it is the mean
    over all choices of so many units.
    """
    owner = np.full(flow.units.count, -1)
    for number, group in enumerate(groups):
        owner[group.units] = number
    total: Polynomial = {}
    for product in products:
        expanded: Polynomial = {(): 1.0}
        for axis, size in product:
            expanded = _multiplied(expanded, _polynomial_of_axis(axis, size, flow, owner))
        for key, value in expanded.items():
            total[key] = total.get(key, 0.0) + value
    return total


def _polynomial_of_axis(axis: Axis, size: int, flow: Flow, owner: Array) -> Polynomial:
    rows = flow.units.resolve(axis)
    if rows is None:
        return {(): float(size)}
    numbers, counts = np.unique(np.sort(np.where(rows == 0, -1, owner[rows]), axis=1), axis=0, return_counts=True)
    found: Polynomial = {}
    for row, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        key = tuple(number for number in row if number >= 0)
        found[key] = found.get(key, 0.0) + count
    return found


def _multiplied(one: Polynomial, other: Polynomial) -> Polynomial:
    found: Polynomial = {}
    for key, value in one.items():
        for more, factor in other.items():
            joined = tuple(sorted(key + more))
            found[joined] = found.get(joined, 0.0) + value * factor
    return found


def _lengths(flow: Flow, node: fx.Node) -> Product:
    return tuple(zip(flow.of(node), sizes_of(value_of(node)), strict=True))


def _linear(flow: Flow, call: Call) -> Iterator[Product]:
    yield (*_lengths(flow, call.node), _lengths(flow, call["weight"])[-1])


def _convolution(flow: Flow, call: Call) -> Iterator[Product]:
    transposed = "transpose" in call.name or bool(call.get("transposed"))
    places = _lengths(flow, call["input"] if transposed else call.node)
    yield places + _lengths(flow, call["weight"])[1:]


def _matmul(flow: Flow, call: Call) -> Iterator[Product]:
    nodes = [value for value in call.arguments.values() if isinstance(value, fx.Node)]
    yield (*_lengths(flow, call.node), _lengths(flow, nodes[1 if "add" in call.name else 0])[-1])


def _attention(flow: Flow, call: Call) -> Iterator[Product]:
    query, key, value = (_lengths(flow, call[name]) for name in ("query", "key", "value"))
    for width in (query[-1], value[-1]):
        yield (*query[:-1], key[-2], width)


def _einsum(flow: Flow, call: Call) -> Iterator[Product]:
    terms = str(call["equation"]).replace(" ", "").partition("->")[0].split(",")
    lengths: dict[str, Length] = {}
    for term, node in zip(terms, call["tensors"], strict=True):
        for letter, length in zip(term, _lengths(flow, node), strict=False):
            if letter not in lengths or length[1] > lengths[letter][1]:
                lengths[letter] = length
    if len(terms) > 1:
        yield tuple(lengths.values())


_LENGTHS: Mapping[str, Callable[[Flow, Call], Iterator[Product]]] = {
    "linear": _linear,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolution),
    **dict.fromkeys(("matmul", "mm", "bmm", "addmm", "baddbmm"), _matmul),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
}
