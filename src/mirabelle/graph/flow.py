"""The result of the pass over a program: axes of all tensors, dimensions to mask, and arguments that depend on widths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, fx

from mirabelle.graph.call import Call, is_tensor, sizes_of, tensors_in, value_of
from mirabelle.graph.units import Array, Axis, Units

Axes: TypeAlias = tuple[Axis, ...]  # of one tensor, one per dimension
Results: TypeAlias = Axes | list[Axes]  # of one tensor, or of several
Place: TypeAlias = tuple[str | int, ...]  # of an operand: the name of an argument, and positions in nested lists


class Kept:
    """The units that are kept, queried by axis.

    Args:
        units: of the program.
        alive: (units,), True for each unit that is kept; unit 0 is always kept.
    """

    def __init__(self, units: Units, alive: Array) -> None:
        self._units = units
        self._alive = alive

    def of(self, axis: Axis, size: int) -> Array:
        """For each of the `size` elements of the axis, whether it is kept."""
        rows = self._units.resolve(axis)
        stays: Array = np.ones(size, bool) if rows is None else np.asarray(self._alive[rows].all(axis=1))
        return stays

    def count(self, axis: Axis, size: int) -> int:
        """Number of elements of the axis that are kept."""
        return int(self.of(axis, size).sum())


@dataclass(frozen=True)
class Share:
    """A size computed by the program, of which a part is kept, such as batch × heads.

    Args:
        node: computes the full size.
        stays: number of elements kept for the example inputs.
        of: full number of elements for the example inputs.
    """

    node: fx.Node
    stays: int
    of: int


@dataclass(frozen=True)
class Masking:
    """An operand over whose dimension an operator sums: removed elements along it count as zero."""

    operand: Place
    dimension: int
    axis: Axis


@dataclass(frozen=True)
class Rewriting:
    """How the arguments of a call change when units are removed.

    Args:
        arguments: computes the new values by name from the kept units.
        target: operator to call instead, for which `arguments` gives all arguments; None: the same operator.
    """

    arguments: Callable[[Kept], Mapping[str, Any]]
    target: Any = None


@dataclass
class Flow:
    """The state of the pass over a program, and its result.

    Args:
        units: all units of the program.
        axes: node -> the axes of its result, or of each of its results.
        maskings: node -> operands to mask.
        statistics: node -> dimensions of its first operand over which it computes a statistic of the kept elements.
        rewritings: node -> how its call changes.
        constants: values of the nodes that depend on no input and no parameter.
        kinds: what each placeholder with a tensor holds: "parameter", "buffer", "constant" or "input".
        inside: nodes whose work is done by the rewriting of a later node.
        equal: axes that must lose the same number of units, but not the same units.
        unknown: names of operators without a rule, each with its number of calls.
    """

    units: Units = field(default_factory=Units)
    axes: dict[fx.Node, Results] = field(default_factory=dict)
    maskings: dict[fx.Node, list[Masking]] = field(default_factory=dict)
    statistics: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    rewritings: dict[fx.Node, Rewriting] = field(default_factory=dict)
    constants: dict[fx.Node, Any] = field(default_factory=dict)
    kinds: dict[fx.Node, str] = field(default_factory=dict)
    inside: set[fx.Node] = field(default_factory=set)
    equal: list[list[Axis]] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)

    def of(self, node: fx.Node) -> Axes:
        """The axes of the result of a node, a single tensor, with all units resolved."""
        axes = self.axes[node]
        assert isinstance(axes, tuple), "a single tensor"
        return tuple(self.units.resolve(axis) for axis in axes)

    def unify(self, one: Axis, other: Axis) -> None:
        """Tie two axes: element i of one is kept exactly if element i of the other is."""
        self.units.unify(one, other)

    def freeze(self, axes: Iterable[Axis], why: str = "") -> None:
        """Mark every unit of the axes as not removable.

        Args:
            axes: to freeze.
            why: reason in words; by default the operator that is being processed.
        """
        reason = self.units.reason
        if why:
            self.units.reason = why
        for axis in axes:
            self.units.freeze(axis)
        self.units.reason = reason

    def fresh(self, size: int) -> Axis:
        """A new axis with one new unit per element."""
        return self.units.fresh(size)

    def mask(self, call: Call, operand: Place | str, dimension: int, axis: Axis) -> None:
        """Record that the operator sums over this dimension of an operand, where removed elements count as zero."""
        if axis is not None:
            place = (operand,) if isinstance(operand, str) else operand
            self.maskings.setdefault(call.node, []).append(Masking(place, dimension, axis))

    def rewrite(self, call: Call, target: Any = None, /, **arguments: Callable[[Kept], Any]) -> None:
        """Record arguments that depend on widths, by name, in addition to those recorded before."""
        before = self.rewritings.get(call.node)

        def values(kept: Kept) -> Mapping[str, Any]:
            earlier = before.arguments(kept) if before is not None else {}
            return {**earlier, **{name: make(kept) for name, make in arguments.items()}}

        self.rewritings[call.node] = Rewriting(values, target or (before.target if before is not None else None))

    def freeze_all(self, call: Call) -> Results:
        """The rule for operators without one: no element of any input or output can be removed."""
        for node in tensors_in(list(call.arguments.values())):
            self.freeze(self.of(node))
        return untouched(value_of(call.node))


def untouched(value: Any) -> Results:
    """Axes of results in which nothing can be removed."""
    if isinstance(value, Tensor):
        return (None,) * value.ndim
    if isinstance(value, (list, tuple)):
        return [(None,) * part.ndim if isinstance(part, Tensor) else () for part in value]
    return ()


def dimension_of(position: int, count: int) -> int:
    """The index of a dimension counted from the front; `position` may be negative."""
    return position + count if position < 0 else position


def broadcast(flow: Flow, nodes: Sequence[fx.Node], out: Sequence[int]) -> Axes:
    """The axes of an elementwise result of shape `out`; axes of operands that have its size are tied to each other."""
    result: list[Axis] = [None] * len(out)
    settled = [False] * len(out)
    for node in nodes:
        axes, sizes = flow.of(node), sizes_of(value_of(node))
        shift = len(out) - len(sizes)
        for own, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
            place = own + shift
            if size != out[place] or size == 1:
                continue
            if settled[place]:
                flow.unify(result[place], axis)
            else:
                result[place], settled[place] = axis, True
    return tuple(flow.units.resolve(axis) for axis in result)


def operands(call: Call) -> list[fx.Node]:
    """The nodes of all tensors among the arguments of a call."""
    return [node for value in call.arguments.values() for node in (tensors_in(value) if not is_tensor(value) else [value])]
