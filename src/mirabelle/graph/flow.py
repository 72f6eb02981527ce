"""What the pass over a program finds: the axes of every result, what is masked where, and which literals follow widths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, fx

from mirabelle.graph.call import Call, is_tensor, sizes_of, tensors_in, value_of
from mirabelle.graph.units import Array, Axis, Units

Axes: TypeAlias = tuple[Axis, ...]  # of one tensor, one a dimension
Results: TypeAlias = Axes | list[Axes]  # of one tensor, or of several
Place: TypeAlias = tuple[str | int, ...]  # of an operand: the name of an argument, and the positions in lists


class Kept:
    """Which units stay, asked by the axes that they make.

    Args:
        alive: True for each unit that stays; unit 0 always does.
    """

    def __init__(self, units: Units, alive: Array) -> None:
        self._units = units
        self._alive = alive

    def of(self, axis: Axis, size: int) -> Array:
        """For each of `size` elements of the axis, whether it stays."""
        rows = self._units.resolve(axis)
        stays: Array = np.ones(size, bool) if rows is None else np.asarray(self._alive[rows].all(axis=1))
        return stays

    def count(self, axis: Axis, size: int) -> int:
        return int(self.of(axis, size).sum())


@dataclass(frozen=True)
class Share:
    """A size that the program computes, of which a part stays: batches × heads, say.

    Args:
        node: that gives the whole size.
        stays: how many of the example's elements stay.
        of: how many the example has.
    """

    node: fx.Node
    stays: int
    of: int


@dataclass(frozen=True)
class Masking:
    """Where an operator sums over an axis: along this dimension of this operand, elements that go count as zero."""

    operand: Place
    dimension: int
    axis: Axis


@dataclass(frozen=True)
class Rewriting:
    """How a call is written when units are gone.

    Args:
        arguments: new values by name, from what is kept.
        target: another operator; None keeps it. With `arguments` complete for it.
    """

    arguments: Callable[[Kept], Mapping[str, Any]]
    target: Any = None


@dataclass
class Flow:
    """The state of the pass, and its result.

    Args:
        units: of the whole program.
        axes: by node: of its result, or of each of its results.
        maskings: by node.
        statistics: by node: dimensions of its first operand over which it takes a statistic of what is kept.
        rewritings: by node.
        constants: values of the nodes that depend on no input and no parameter.
        inside: nodes that were taken in with a later one, which has their work in its own rewriting.
        equal: axes that must lose equally many units, though not the same.
        unknown: names of the operators that were not understood, with how often.
    """

    units: Units = field(default_factory=Units)
    axes: dict[fx.Node, Results] = field(default_factory=dict)
    maskings: dict[fx.Node, list[Masking]] = field(default_factory=dict)
    statistics: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    rewritings: dict[fx.Node, Rewriting] = field(default_factory=dict)
    constants: dict[fx.Node, Any] = field(default_factory=dict)
    inside: set[fx.Node] = field(default_factory=set)
    equal: list[list[Axis]] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)

    def of(self, node: fx.Node) -> Axes:
        """The axes of a tensor, in representatives."""
        axes = self.axes[node]
        assert isinstance(axes, tuple), "a single tensor"
        return tuple(self.units.resolve(axis) for axis in axes)

    def unify(self, one: Axis, other: Axis) -> None:
        self.units.unify(one, other)

    def freeze(self, axes: Iterable[Axis], why: str = "") -> None:
        """Every unit of the axes stays; by default because of the operator at hand."""
        reason = self.units.reason
        if why:
            self.units.reason = why
        for axis in axes:
            self.units.freeze(axis)
        self.units.reason = reason

    def fresh(self, size: int) -> Axis:
        return self.units.fresh(size)

    def mask(self, call: Call, operand: Place | str, dimension: int, axis: Axis) -> None:
        """The operator sums over this dimension of an operand."""
        if axis is not None:
            place = (operand,) if isinstance(operand, str) else operand
            self.maskings.setdefault(call.node, []).append(Masking(place, dimension, axis))

    def rewrite(self, call: Call, target: Any = None, /, **arguments: Callable[[Kept], Any]) -> None:
        """Arguments that follow widths, by name; what stands there already stays."""
        before = self.rewritings.get(call.node)

        def values(kept: Kept) -> Mapping[str, Any]:
            earlier = before.arguments(kept) if before is not None else {}
            return {**earlier, **{name: make(kept) for name, make in arguments.items()}}

        self.rewritings[call.node] = Rewriting(values, target or (before.target if before is not None else None))

    def freeze_all(self, call: Call) -> Results:
        """The rule for what is not understood: everything that goes in and comes out stays."""
        for node in tensors_in(list(call.arguments.values())):
            self.freeze(self.of(node))
        return untouched(value_of(call.node))


def untouched(value: Any) -> Results:
    """Axes of results in which nothing can be cut."""
    if isinstance(value, Tensor):
        return (None,) * value.ndim
    if isinstance(value, (list, tuple)):
        return [(None,) * part.ndim if isinstance(part, Tensor) else () for part in value]
    return ()


def dimension_of(position: int, count: int) -> int:
    """A dimension counted from the front."""
    return position + count if position < 0 else position


def broadcast(flow: Flow, nodes: Sequence[fx.Node], out: Sequence[int]) -> Axes:
    """The axes of an elementwise result of these sizes: where operands are as wide as it, theirs are one."""
    found: list[Axis] = [None] * len(out)
    settled = [False] * len(out)
    for node in nodes:
        axes, sizes = flow.of(node), sizes_of(value_of(node))
        shift = len(out) - len(sizes)
        for own, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
            place = own + shift
            if size != out[place] or size == 1:
                continue
            if settled[place]:
                flow.unify(found[place], axis)
            else:
                found[place], settled[place] = axis, True
    return tuple(flow.units.resolve(axis) for axis in found)


def operands(call: Call) -> list[fx.Node]:
    """All tensors that a call takes."""
    return [node for value in call.arguments.values() for node in (tensors_in(value) if not is_tensor(value) else [value])]
