"""The cost of a program after units are removed: parameters and multiply-accumulates per sample, without running it.

Every cost is a sum of products of lengths of dimensions: a linear layer costs rows × inputs × outputs. Evaluated for the kept
units, the products give the exact cost. As polynomials in the fractions of units that the groups keep, they give a planner the
cost of any cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, fx

from mirabelle.graph.call import Call, sizes_of, tensors_in, value_of
from mirabelle.graph.flow import Flow, Kept
from mirabelle.graph.groups import AxisGroup, axes_of_tensors, groups_of
from mirabelle.graph.interpret import kept_without
from mirabelle.graph.trace import Program
from mirabelle.graph.units import Array, Axis
from mirabelle.model.products import Operation, factors, is_counted
from mirabelle.model.products import mac_products as products_of

Length: TypeAlias = tuple[Axis, int]  # of a dimension: its axis, and its size when nothing is removed
Product: TypeAlias = tuple[Length, ...]
# Monomial -> coefficient; a monomial lists the indices of the groups whose fractions are multiplied.
Polynomial: TypeAlias = dict[tuple[int, ...], float]


@dataclass(frozen=True)
class GroupCost:
    """A group of units that are removed together, with its cost.

    Args:
        name: "tensor:dimension" of its first member, such as "conv1.weight:0".
        units: number of units.
        members: every "tensor:dimension" from which elements are removed with a unit.
        parameters: number of parameters removed with one unit.
        macs: multiply-accumulates per sample removed with one unit.
    """

    name: str
    units: int
    members: tuple[str, ...]
    parameters: int
    macs: int

    def to_data(self) -> dict[str, Any]:
        return asdict(self)


def costs_of(program: Program, flow: Flow, batch: int) -> list[GroupCost]:
    """The members of each group, and the cost of one of its units while all others are kept."""
    groups, whole = groups_of(program, flow), kept_without(flow, np.zeros(0, np.int64))
    parameters, macs = parameters_left(program, flow, whole), multiply_accumulates(flow, whole, batch)
    costs = []
    for group in groups:
        without = kept_without(flow, group.units[:1])
        costs.append(
            GroupCost(
                group.name,
                len(group),
                tuple(f"{member.name}:{member.dimension}" for member in group.members),
                parameters - parameters_left(program, flow, without),
                macs - multiply_accumulates(flow, without, batch),
            )
        )
    return costs


def parameters_left(program: Program, flow: Flow, kept: Kept) -> int:
    """Number of kept parameters. Shared parameters count once, parameters that the program does not use not at all."""
    return counted(parameter_products(program, flow), kept)


def multiply_accumulates(flow: Flow, kept: Kept, batch: int) -> int:
    """Multiply-accumulates per sample of convolutions, matrix products and attention.

    Args:
        flow: of the program.
        kept: units that are kept.
        batch: batch size of the example inputs with which the program was traced.
    """
    return counted((product for _, product in mac_products(flow)), kept) // batch


def parameter_products(program: Program, flow: Flow) -> Iterator[Product]:
    """The lengths of the dimensions of each parameter that the program uses."""
    axes = axes_of_tensors(program, flow)
    used = {source.name: None for source in program.sources.values() if source.kind == "parameter"}
    return (axes[name] for name in used)


def mac_products(flow: Flow) -> Iterator[tuple[fx.Node, Product]]:
    """Products whose sum is the number of multiply-accumulates of the whole example batch, each with its node.

    As in `model.counting`, products of stored numbers alone are left out. What a call computes from no input, such as the
    projection of a table of positions, counts for every sample, since a call with one sample computes it, too.
    """
    stored = {node for node, kind in flow.kinds.items() if kind in ("parameter", "buffer")}
    fed = {node for node, kind in flow.kinds.items() if kind == "input"}
    batch = next((sizes_of(value_of(node))[0] for node in flow.axes if node in fed and value_of(node).ndim), 1)
    for node in flow.axes:
        if node.op != "call_function":
            continue
        tensors = [part for part in node.all_input_nodes if isinstance(value_of(part), (Tensor, tuple, list))]
        if any(part in fed for part in tensors):
            fed.add(node)
        elif tensors and all(part in stored for part in tensors):
            stored.add(node)
        call = Call.of(node)
        operation: Operation[Length] = Operation(call.name, call.arguments, node, partial(_lengths, flow))
        if is_counted(call.name) and not all(part in stored for part in tensors_in(factors(operation))):
            for product in products_of(operation):
                yield node, product if node in fed else (*product, (None, batch))


def counted(products: Iterable[Product], kept: Kept) -> int:
    """The sum of the products for the kept units."""
    return sum(math.prod(kept.count(axis, size) for axis, size in product) for product in products)


def polynomial_of(products: Iterable[Product], flow: Flow, groups: Sequence[AxisGroup]) -> Polynomial:
    """The sum of the products as a polynomial in the fractions of units that the groups keep.

    Elements that belong to no group are constant. The polynomial is exact if the groups that share an axis form a grid, as
    heads and the positions within heads do. Otherwise it is the mean over all choices of the same numbers of units.
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
    polynomial: Polynomial = {}
    for row, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        key = tuple(number for number in row if number >= 0)
        polynomial[key] = polynomial.get(key, 0.0) + count
    return polynomial


def _multiplied(one: Polynomial, other: Polynomial) -> Polynomial:
    result: Polynomial = {}
    for key, value in one.items():
        for more, factor in other.items():
            joined = tuple(sorted(key + more))
            result[joined] = result.get(joined, 0.0) + value * factor
    return result


def _lengths(flow: Flow, node: fx.Node) -> Product:
    return tuple(zip(flow.of(node), sizes_of(value_of(node)), strict=True))
