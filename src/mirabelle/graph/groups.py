"""Axis groups: units that belong to the same dimensions of the same parameters, such as the channels of a convolution."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mirabelle.graph.call import sizes_of, value_of
from mirabelle.graph.flow import Flow
from mirabelle.graph.trace import Program
from mirabelle.graph.units import Array, Axis
from mirabelle.numerics.arrays import to_numpy

_OPERATOR = re.compile(r'"([^"]+)"(?: in (\S+))?(?: with (.+))?')  # format of a reason given by the pass over a program
_MAX_REASONS = 2  # in the message for a whole model


@dataclass(frozen=True)
class Member:
    """A dimension of a parameter or buffer from which elements are removed with the units of a group.

    Args:
        name: of the parameter or buffer.
        dimension: index of the dimension.
        column: column of the dimension's axis that contains the units; 0 is the outermost.
        elements: number of elements of the dimension that are removed with one unit.
    """

    name: str
    dimension: int
    column: int
    elements: int


@dataclass(frozen=True)
class AxisGroup:
    """Units of one kind, such as channels, neurons, heads, or positions within heads.

    Args:
        units: their numbers, in the order of their elements in the first member.
        members: the dimensions from which elements are removed with a unit, in the order of the model's parameters.
    """

    units: Array
    members: tuple[Member, ...]

    def __len__(self) -> int:
        return len(self.units)

    @property
    def name(self) -> str:
        """Name and dimension of the first member, such as "conv1.weight:0"."""
        first = self.members[0]
        return f"{first.name}:{first.dimension}"


@dataclass(frozen=True)
class Frozen:
    """A dimension of a parameter or buffer of which some or all elements cannot be removed.

    Args:
        name: of the parameter or buffer.
        dimension: index of the dimension.
        elements: number of elements that cannot be removed.
        size: number of all elements.
        reasons: why, in words.
    """

    name: str
    dimension: int
    elements: int
    size: int
    reasons: tuple[str, ...]


def axes_of_tensors(program: Program, flow: Flow) -> dict[str, tuple[tuple[Axis, int], ...]]:
    """For each parameter and buffer, the axis and the size of each dimension."""
    axes = {}
    for node in program.graph.nodes:
        source = program.sources.get(node.name) if node.op == "placeholder" else None
        if source is not None and source.kind in ("parameter", "buffer") and source.name not in axes:
            axes[source.name] = tuple(zip(flow.of(node), sizes_of(value_of(node)), strict=True))
    return axes


def groups_of(program: Program, flow: Flow) -> list[AxisGroup]:
    """All groups of a program, in the order of its parameters.

    Units belong to the same group if they take the same number of elements from the same dimensions of the same tensors. A
    single unit is no group, since one must stay.
    """
    keys = np.zeros(flow.units.count, np.uint64)  # of each unit: the sum of random numbers of its members, a hash of their set
    draw = np.random.default_rng(0)
    touching: dict[int, list[Member]] = defaultdict(list)
    first: dict[int, int] = {}
    entries: list[tuple[Member, Array]] = []
    for name, axes in axes_of_tensors(program, flow).items():
        for dimension, (axis, _) in enumerate(axes):
            for column in range(0 if axis is None else axis.shape[1]):
                units, counts = np.unique(axis[:, column], return_counts=True)  # type: ignore[index]  # it is an array
                for count in np.unique(counts):
                    own = units[(counts == count) & (units != 0)]
                    member = Member(name, dimension, column, int(count))
                    keys[own] += draw.integers(1 << 63, dtype=np.uint64)
                    entries.append((member, own))
    for position, (member, own) in enumerate(entries):
        for key in np.unique(keys[own]).tolist():
            touching[key].append(member)
            first.setdefault(key, position)
    groups = [
        AxisGroup(entries[position][1][keys[entries[position][1]] == np.uint64(key)], tuple(touching[key]))
        for key, position in sorted(first.items(), key=lambda item: (item[1], item[0]))
    ]
    return [group for group in groups if len(group) > 1]


def frozen_in(program: Program, flow: Flow) -> list[Frozen]:
    """The dimensions of parameters and buffers of which some or all elements cannot be removed, with reasons."""
    frozen = []
    for node in program.graph.nodes:
        source = program.sources.get(node.name) if node.op == "placeholder" else None
        if source is None or source.kind not in ("parameter", "buffer"):
            continue
        raw = flow.axes[node]
        for dimension, (axis, size) in enumerate(zip(raw, sizes_of(value_of(node)), strict=True)):
            if axis is None or size <= 1:
                continue
            resolved = flow.units.resolve(axis)  # type: ignore[arg-type]
            stays = size if resolved is None else int((~resolved.any(axis=1)).sum())
            if resolved is not None and all(len(np.unique(column[column != 0])) <= 1 for column in resolved.T):
                ties = dict.fromkeys(f"operator {tie} ties its elements to each other" for tie in flow.units.tied_by(resolved))
                frozen.append(
                    Frozen(source.name, dimension, size, size, tuple(ties) or ("its elements are tied to each other",))
                )
            elif stays:
                reasons = dict.fromkeys(_in_words(why, dimension) for why in flow.units.why(axis))  # type: ignore[arg-type]
                frozen.append(Frozen(source.name, dimension, stays, size, tuple(reasons) or ("every element is needed",)))
    return frozen


def _in_words(reason: str, dimension: int) -> str:
    """A reason given by the pass over the program, in words for the user."""
    match = _OPERATOR.fullmatch(reason)
    if match is None:
        return reason
    name, module, other = match.groups()
    if "conv" in name and dimension > 1:
        return "kernel positions are never removed"
    if name == "embedding" and dimension == 0:
        return "any row of the table may be looked up"
    if dimension == 1 and ("conv" in name or name in ("linear", "lstm", "gru")):
        return f"the input of {module or 'the operator'} cannot be cut"
    place = f'operator "{name}"{f" in {module}" if module else ""}'
    return f"{place} joins its elements with {other}, which stays whole" if other else f"{place} needs all elements"


def kept_whole(frozen: Iterable[Frozen]) -> list[str]:
    """Sentences on the outputs of layers that an operator keeps whole, one for each reason, the most frequent ones first."""
    names: dict[str, list[str]] = defaultdict(list)
    for one in frozen:
        for why in one.reasons if one.dimension == 0 else ():
            if why.startswith("operator"):
                names[why].append(one.name)
    ranked = sorted(names.items(), key=lambda item: -len(item[1]))
    return [f"{own[0]}{f' and {len(own) - 1} more' if len(own) > 1 else ''}: {why}" for why, own in ranked]


def why_nothing_goes(frozen: Iterable[Frozen]) -> str:
    """Why nothing in a model can be removed: operators without a rule first, then what freezes the outputs of layers."""
    ranked = sorted(frozen, key=lambda one: (not any("not supported" in why for why in one.reasons), one.dimension != 0))
    reasons = dict.fromkeys(why for one in ranked for why in one.reasons)
    return "; ".join(list(reasons)[:_MAX_REASONS]) or "it has no parameters"


def sums_over_units(program: Program, flow: Flow, values: Mapping[str, Tensor]) -> npt.NDArray[np.float64]:
    """For each unit, the sum of the given values over all elements that are removed with it.

    Args:
        program: of the model.
        flow: of the program.
        values: name of a tensor -> values of its shape.

    Returns:
        (units,); 0 for unit 0, which is never removed.
    """
    sums = np.zeros(flow.units.count)
    for name, axes in axes_of_tensors(program, flow).items():
        for dimension, (axis, _) in enumerate(axes if name in values else ()):
            if axis is not None:
                others = [d for d in range(values[name].ndim) if d != dimension]
                lines = to_numpy((values[name].sum(others) if others else values[name]).double())
                for column in axis.T:
                    np.add.at(sums, column, lines)
    sums[0] = 0.0
    return sums
