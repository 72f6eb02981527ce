"""Operators that concatenate or stack tensors, or write one tensor into another."""

from __future__ import annotations

import numpy as np
from torch import fx

from mirabelle.graph.call import Call, is_free, sizes_of, value_of
from mirabelle.graph.flow import Flow, Kept, Results, dimension_of
from mirabelle.graph.units import Array, Axis


def cat(flow: Flow, call: Call) -> Results:
    """`cat`: elements of one dimension follow each other; the other dimensions are tied."""
    nodes: list[fx.Node] = [node for node in call["tensors"] if sizes_of(value_of(node)) != (0,)]
    sizes = [sizes_of(value_of(node)) for node in nodes]
    d = dimension_of(int(call.get("dim", 0)), len(sizes[0]))
    for k in range(len(sizes[0])):
        for node in nodes[1:] if k != d else ():
            flow.unify(flow.of(nodes[0])[k], flow.of(node)[k])
    axes: list[Axis] = list(flow.of(nodes[0]))
    axes[d] = _layer_by_layer([(flow.of(node)[d], size[d]) for node, size in zip(nodes, sizes, strict=True)])
    return tuple(flow.units.resolve(axis) for axis in axes)


def stack(flow: Flow, call: Call) -> Results:
    """`stack`: a new dimension, which is frozen; the others are tied."""
    nodes: list[fx.Node] = list(call["tensors"])
    for node in nodes[1:]:
        for one, other in zip(flow.of(nodes[0]), flow.of(node), strict=True):
            flow.unify(one, other)
    axes: list[Axis] = list(flow.of(nodes[0]))
    axes.insert(dimension_of(int(call.get("dim", 0)), len(axes) + 1), None)
    return tuple(axes)


def slice_scatter(flow: Flow, call: Call) -> Results:
    """`slice_scatter`: a range of one dimension is replaced by another tensor."""
    axes, source = list(flow.of(call["self"])), flow.of(call["src"])
    sizes = sizes_of(value_of(call["self"]))
    d = dimension_of(int(call.get("dim", 0)), len(axes))
    for k, (one, other) in enumerate(zip(axes, source, strict=True)):
        if k != d:
            flow.unify(one, other)
    size = sizes[d]
    start = min(max(dimension_of(int(call.get("start") or 0), size), 0), size)
    step, count = int(call.get("step", 1) or 1), sizes_of(value_of(call["src"]))[d]
    places = start + step * np.arange(count)
    axis = axes[d]
    if axis is None:
        flow.freeze([source[d]])
    elif step != 1 or (is_free(value_of(call["self"]).shape[d]) and count < size):
        flow.freeze([axis, source[d]])
    elif count == size:
        flow.unify(axis, source[d])  # all elements: the written bounds stay right at any size
    else:
        flow.unify(axis[places], source[d])

        def before(kept: Kept, place: int) -> int:
            return int(kept.of(axis, size)[:place].sum())

        flow.rewrite(call, None, start=lambda kept: before(kept, start), end=lambda kept: before(kept, start + count))
    return tuple(flow.units.resolve(axis) for axis in axes)


def select_scatter(flow: Flow, call: Call) -> Results:
    """`select_scatter`: one element of a dimension, which is frozen, is replaced by another tensor."""
    axes = list(flow.of(call["self"]))
    d, size = dimension_of(int(call["dim"]), len(axes)), sizes_of(value_of(call["self"]))
    for one, other in zip([axis for k, axis in enumerate(axes) if k != d], flow.of(call["src"]), strict=True):
        flow.unify(one, other)
    axis, index = axes[d], dimension_of(int(call["index"]), size[d])
    if axis is not None:
        flow.freeze([axis[index][np.newaxis]])
        flow.rewrite(call, None, index=lambda kept: int(kept.of(axis, size[d])[:index].sum()))
    return tuple(flow.units.resolve(axis) for axis in axes)


def _layer_by_layer(parts: list[tuple[Axis, int]]) -> Axis:
    """The rows of several axes one after the other, as an axis; elements that are always kept have unit 0."""
    width = max((axis.shape[1] for axis, _ in parts if axis is not None), default=0)
    if not width:
        return None
    rows: list[Array] = []
    for axis, size in parts:
        own = np.zeros((size, width), np.int32)
        if axis is not None:
            own[:, : axis.shape[1]] = axis
        rows.append(own)
    return np.concatenate(rows)
