"""Label tracing: finds out how an operator that only moves elements maps the dimensions of its input to those of its result.

The operator is run on a tensor that contains, as labels, its own indices along one dimension. If the labels in the result vary
along one dimension, this dimension is a selection of rows. If they vary additively along several, these form a product. If they
do not vary, a single element is selected, which then cannot be removed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from mirabelle.graph.call import Call, is_free, is_tensor, number_of, sizes_of, value_of
from mirabelle.graph.flow import Axes, Flow
from mirabelle.graph.units import Array, Axis, product
from mirabelle.numerics.arrays import to_numpy

_aten = torch.ops.aten
VIEWS = {"view", "reshape", "_unsafe_view", "_reshape_alias", "unflatten", "flatten", "view_copy", "view_as", "reshape_as"}
FLOATING = {"pad", *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3))}


@dataclass
class Moved:
    """How a chain of operators moves the elements of a tensor: axes and sizes of the input and of the results.

    Args:
        node: the input.
        labels: dimension with units -> for each result, the index along this dimension that each element had, from 1; 0 if new.
    """

    node: fx.Node
    axes: Axes
    sizes: Sequence[int]
    outs: Sequence[Sequence[int]]
    traced: Callable[[int], list[Tensor]]
    labels: dict[int, list[Tensor]]
    results: list[Axes] = field(default_factory=list)

    @staticmethod
    def by(flow: Flow, calls: Sequence[Call]) -> Moved:
        node = next(value for value in calls[0].arguments.values() if is_tensor(value))
        value = value_of(calls[-1].node)
        outs = [sizes_of(part) for part in (value if isinstance(value, (list, tuple)) else [value])]
        axes, sizes = flow.of(node), sizes_of(value_of(node))
        traced = partial(_labels, flow.constants, calls, node, sizes, outs)
        return Moved(node, axes, sizes, outs, traced, {d: traced(d) for d, axis in enumerate(axes) if axis is not None})

    @property
    def unchanged(self) -> list[bool]:
        """For each dimension, whether the single result has it unchanged."""
        return [d not in self.labels or _is_identity(self.labels[d][0], d, self.sizes[d]) for d in range(len(self.sizes))]

    def can_be_picked(self) -> bool:
        """Whether at most one dimension with units is changed, so that an index along it describes the change.

        No index does so along a dimension of free size, which has other elements in another batch.
        """
        if all(self.unchanged):
            return True
        if self.unchanged.count(False) > 1 or len(self.outs) > 1 or len(self.outs[0]) != len(self.sizes):
            return False
        d = self.unchanged.index(False)
        if is_free(value_of(self.node).shape[d]):
            return False
        labels = self.labels[d][0]
        others = [k for k in range(len(self.sizes)) if k != d]
        same = all(_is_identity(self.traced(k)[0], k, self.sizes[k]) for k in others)
        return same and bool((labels > 0).all()) and not any(varies(labels, k) for k in others)


def settle(flow: Flow, moved: Moved) -> None:
    """The axes of the results, read from the labels."""
    columns_of: list[list[list[Array]]] = [[[] for _ in out] for out in moved.outs]
    for dimension, labels_of_results in moved.labels.items():
        axis = flow.units.resolve(moved.axes[dimension])
        for place, labels in enumerate(labels_of_results):
            if axis is not None:
                _read(flow, axis, labels, columns_of[place])
    moved.results = [tuple(_joined(flow, columns) for columns in out) for out in columns_of]


def _is_identity(labels: Tensor, dimension: int, size: int) -> bool:
    if dimension >= labels.ndim or labels.shape[dimension] != size:
        return False
    index = torch.arange(1, size + 1).reshape([-1 if k == dimension else 1 for k in range(labels.ndim)])
    return bool((labels == index).all())


def _labels(  # noqa: PLR0917 (bound by partial)
    known: Mapping[fx.Node, Any],
    calls: Sequence[Call],
    node: fx.Node,
    sizes: Sequence[int],
    outs: Sequence[Sequence[int]],
    dimension: int,
) -> list[Tensor]:
    """For each result, the index along `dimension` that each element had, from 1; 0 for new elements such as padding."""
    if len(calls) == 1 and calls[0].name in VIEWS:
        return [_viewed(sizes, dimension, outs[0])]
    label = torch.arange(1, sizes[dimension] + 1)
    label = label.reshape([-1 if k == dimension else 1 for k in range(len(sizes))]).expand(*sizes)
    values: dict[fx.Node, Any] = {node: label}
    for call in calls:
        floating = call.name in FLOATING
        values = {part: value.to(torch.float64) if floating else value for part, value in values.items()}
        target = _aten.reshape.default if call.name in ("view", "_unsafe_view") else call.node.target
        arguments = {name: _plain(value, values, known) for name, value in call.arguments.items()}
        if target is _aten.reshape.default:
            arguments = {"self": arguments["self"], "shape": arguments["size"]}
        result = target(**arguments)  # type: ignore[operator]  # operators are callable
        values = {call.node: result}
    results = list(result) if isinstance(result, (list, tuple)) else [result]
    return [part.to(torch.int64) for part in results]


def _plain(value: Any, values: Mapping[fx.Node, Any], known: Mapping[fx.Node, Any]) -> Any:
    if isinstance(value, fx.Node):
        traced = value_of(value)
        if value in values or value in known:
            return values.get(value, known.get(value))
        return torch.empty(1).expand(sizes_of(traced)) if isinstance(traced, Tensor) else number_of(traced)
    if isinstance(value, (list, tuple)):
        return [_plain(part, values, known) for part in value]
    return number_of(value) if isinstance(value, torch.SymInt) else value


def _viewed(sizes: Sequence[int], dimension: int, out: Sequence[int]) -> Tensor:
    """Labels of a view in closed form: (Σ_d index_d · step_d // stride) mod size + 1.

    If the strides of both shapes divide each other, only dimensions between `stride` and `period` vary. The others have size 1
    and are expanded, so that no tensor of the size of the result is created.
    """
    stride, size = math.prod(sizes[dimension + 1 :]), sizes[dimension]
    period, steps = stride * size, [math.prod(out[d + 1 :]) for d in range(len(out))]
    chain = sorted({stride, period, *(step for step, extent in zip(steps, out, strict=True) if extent > 1), math.prod(out)})
    if any(high % low for low, high in pairwise(chain)):
        return (torch.arange(math.prod(out)).reshape(*out) // stride) % size + 1
    place = torch.zeros([1] * len(out), dtype=torch.int64)
    for d, (step, extent) in enumerate(zip(steps, out, strict=True)):
        if extent > 1 and step < period and step * extent > stride:
            place = place + step * torch.arange(extent).reshape([-1 if k == d else 1 for k in range(len(out))])
    return ((place // stride) % size + 1).expand(*out)


def _read(flow: Flow, axis: Array, labels: Tensor, columns: list[list[Array]]) -> None:
    """Append, for each dimension of a result along which the labels vary, the corresponding rows of the axis to `columns`."""
    if labels.numel() == 0:  # an empty result has no widths
        flow.freeze([axis])
        return
    varying = [d for d in range(labels.ndim) if varies(labels, d)]
    for d in reversed(range(labels.ndim)):
        if d not in varying:
            labels = labels.select(d, 0)
    index = to_numpy(labels)
    if not varying:
        if index:
            flow.freeze([axis[int(index) - 1][np.newaxis]])
        return
    if len(varying) == 1:
        columns[varying[0]].append(_rows(flow, axis, index))
        return
    lines = [_line(index, place) for place in range(index.ndim)]
    sums = sum(
        np.reshape(line - line[0], [-1 if k == place else 1 for k in range(index.ndim)]) for place, line in enumerate(lines)
    )
    if not index.all() or not np.array_equal(index, sums + index.flat[0]):
        flow.freeze([axis])
        return
    parts = []
    for d, line in zip(varying, lines, strict=True):
        different, positions = np.unique(line, return_inverse=True)
        units = flow.fresh(len(different))
        assert units is not None, "labels that vary have several units"
        columns[d].append(units[positions])
        parts.append((units[positions], len(line)))
    flow.unify(axis[index.reshape(-1) - 1], product(parts))


def varies(labels: Tensor, dimension: int) -> bool:
    if labels.shape[dimension] <= 1 or labels.stride(dimension) == 0:
        return False
    return not bool((labels == labels.narrow(dimension, 0, 1)).all())


def _line(index: Array, dimension: int) -> Array:
    """The numbers along one dimension, at index 0 of the others."""
    line: Array = index[tuple(slice(None) if k == dimension else 0 for k in range(index.ndim))]
    return line


def _rows(flow: Flow, axis: Array, index: Array) -> Array:
    """The rows of an axis selected by labels; new elements get new units, which other equations may tie."""
    rows: Array = axis[np.maximum(index, 1) - 1].copy()
    new = index == 0
    if new.any():
        count = int(new.sum())
        units = flow.fresh(max(count, 2))
        assert units is not None, "an axis has several units"
        rows[new] = 0
        rows[new, 0] = units[:count, 0]
    return rows


def _joined(flow: Flow, columns: list[Array]) -> Axis:
    return flow.units.resolve(np.concatenate(columns, axis=1)) if columns else None
