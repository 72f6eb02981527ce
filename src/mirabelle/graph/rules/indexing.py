"""Indexing by data: the indexed dimensions are frozen, the others pass to the result."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from mirabelle.graph.call import Call, is_known, is_tensor, name_of, sizes_of, value_of
from mirabelle.graph.flow import Flow, Results, dimension_of
from mirabelle.graph.rules.layout import layout
from mirabelle.graph.units import Axis

_SAME_VALUES = ("expand", "expand_as", "broadcast_to", "clone", "contiguous", "to", "_to_copy", "alias", "detach")


def embedding(flow: Flow, call: Call) -> Results:
    """`embedding`: the width of the table passes, its rows (the vocabulary) are frozen."""
    table = flow.of(call["weight"])
    flow.freeze([table[0]])
    return (*flow.of(call["indices"]), table[1])


def bags(flow: Flow, call: Call) -> Results:
    """`embedding_bag`, sums of rows of a table: its width passes, its rows (the vocabulary) are frozen."""
    table, width = flow.of(call["weight"]), sizes_of(value_of(call["weight"]))[1]
    flow.freeze([table[0]])
    for name in ("indices", "offsets", "per_sample_weights"):
        if is_tensor(call.get(name)):
            flow.freeze(flow.of(call[name]))
    sizes = [sizes_of(part) for part in value_of(call.node)]
    return [(None, table[1]) if len(size) > 1 and size[1] == width else (None,) * len(size) for size in sizes]


def index(flow: Flow, call: Call) -> Results:
    """x[i, j]: indexed dimensions are frozen and the indices broadcast; the other dimensions pass."""
    axes = list(flow.of(call["self"]))
    indices = list(call["indices"])
    present = [node for node in indices if node is not None]
    if len(present) == 1 and _is_known_line(flow, present[0]):
        return layout(flow, call)
    indexed = [d for d, node in enumerate(indices) if node is not None]
    nodes: list[fx.Node] = [indices[d] for d in indexed]
    if any("bool" in str(value_of(node).dtype) for node in nodes):
        return flow.freeze_all(call)
    flow.freeze([axes[d] for d in indexed])
    for node in nodes:
        flow.freeze(flow.of(node))
    rank = max(len(sizes_of(value_of(node))) for node in nodes)
    rest: list[Axis] = [axis for d, axis in enumerate(axes) if d not in indexed]
    together = indexed == list(range(indexed[0], indexed[-1] + 1))
    rest[indexed[0] if together else 0 : indexed[0] if together else 0] = [None] * rank
    return tuple(flow.units.resolve(axis) for axis in rest)


def index_put(flow: Flow, call: Call) -> Results:
    """x[i] = values: the leading, indexed dimensions are frozen; the others are tied to those of the values.

    Assigning one number by a Boolean mask, such as x[x < 0] = 1, is elementwise.
    """
    axes, values, indices = flow.of(call["self"]), flow.of(call["values"]), list(call["indices"])
    sizes, value_sizes = sizes_of(value_of(call["self"])), sizes_of(value_of(call["values"]))
    count = len(indices)
    if count == 1 and _masks_by_one_number(call):
        for own, other in zip(axes, flow.of(indices[0]), strict=False):
            flow.unify(own, other)
        return tuple(flow.units.resolve(axis) for axis in axes)
    if any(node is None or "bool" in str(value_of(node).dtype) for node in indices):
        return flow.freeze_all(call)
    flow.freeze(axes[:count])
    for node in indices:
        flow.freeze(flow.of(node))
    rest = len(axes) - count
    flow.freeze(values[: max(len(values) - rest, 0)])
    for k in range(1, min(rest, len(values)) + 1):
        if sizes[-k] == value_sizes[-k]:
            flow.unify(axes[-k], values[-k])
        else:
            flow.freeze([axes[-k], values[-k]])
    return tuple(flow.units.resolve(axis) for axis in axes)


def _masks_by_one_number(call: Call) -> bool:
    """Whether elements are chosen by a Boolean mask and all set to the same number."""
    (mask,) = call["indices"]
    return mask is not None and value_of(mask).dtype is torch.bool and math.prod(sizes_of(value_of(call["values"]))) == 1


def scatter(flow: Flow, call: Call) -> Results:
    """`scatter`: elements are written along one dimension at given indices; this dimension is frozen in all operands."""
    nodes = [call[name] for name in ("self", "index", "src") if is_tensor(call.get(name))]
    parts = [(flow.of(node), sizes_of(value_of(node))) for node in nodes]
    axes, sizes = parts[0]
    d = dimension_of(int(call["dim"]), len(axes))
    for other, _ in parts:
        for k in range(len(axes)):
            if k == d or any(size[k] != sizes[k] for _, size in parts):
                flow.freeze([axes[k], other[k]])
            else:
                flow.unify(axes[k], other[k])
    return tuple(flow.units.resolve(axis) for axis in axes)


def index_add(flow: Flow, call: Call) -> Results:
    """`index_add` and the like: `scatter` with one index vector for all elements."""
    axes = flow.of(call["self"])
    d = dimension_of(int(call["dim"]), len(axes))
    for k, (own, other) in enumerate(zip(axes, flow.of(call["source"]), strict=True)):
        if k == d:
            flow.freeze([own, other, *flow.of(call["index"])])
        else:
            flow.unify(own, other)
    return tuple(flow.units.resolve(axis) for axis in axes)


def gather(flow: Flow, call: Call) -> Results:
    """`gather`: selects elements by an index tensor of the same rank; all dimensions over which it runs are frozen."""
    axes, sizes = list(flow.of(call["self"])), sizes_of(value_of(call["self"]))
    d = dimension_of(int(call["dim"]), len(axes))
    flow.freeze([axes[d]])
    picked, out = flow.of(call["index"]), sizes_of(value_of(call["index"]))
    result: list[Axis] = []
    for k in range(len(axes)):
        if k == d:
            flow.freeze([picked[k]])
            result.append(None)
        elif sizes[k] == out[k]:
            flow.unify(axes[k], picked[k])
            result.append(axes[k])
        else:
            flow.freeze([axes[k], picked[k]])
            result.append(None)
    return tuple(flow.units.resolve(axis) for axis in result)


def index_select(flow: Flow, call: Call) -> Results:
    """`index_select`: one index vector for all elements; with a constant index, it only moves elements."""
    if _is_known_line(flow, call["index"]):
        return layout(flow, call)
    axes = list(flow.of(call["self"]))
    d = dimension_of(int(call["dim"]), len(axes))
    flow.freeze([axes[d]])
    if is_tensor(call["index"]):
        flow.freeze(flow.of(call["index"]))
    axes[d] = None
    return tuple(axes)


def pieces(flow: Flow, call: Call) -> Results:
    """`split_with_sizes`: with sizes that depend on data, such as the tokens of each expert, the cut dimension is frozen."""
    if all(isinstance(size, int) or (isinstance(size, fx.Node) and is_known(value_of(size))) for size in call["split_sizes"]):
        return layout(flow, call)
    axes = list(flow.of(call["self"]))
    d = dimension_of(int(call.get("dim", 0)), len(axes))
    flow.freeze([axes[d]])
    return [tuple(None if k == d else axis for k, axis in enumerate(axes)) for _ in call["split_sizes"]]


def marked(flow: Flow, call: Call) -> Results:
    """`one_hot`: a new dimension of classes, which is frozen; the others pass."""
    return (*flow.of(call["self"]), None)


def masked_scatter(flow: Flow, call: Call) -> Results:
    """`masked_scatter`: rows chosen by a mask are replaced by the rows of another tensor, in order; their width passes.

    That needs a mask that is constant along the last dimension, which the source has, too; otherwise all is frozen.
    """
    axes, mask, source = list(flow.of(call["self"])), call["mask"], call["source"]
    sizes, given = sizes_of(value_of(call["self"])), sizes_of(value_of(source))
    if not given or given[-1] != sizes[-1] or not _is_constant_along_last(mask):
        return flow.freeze_all(call)
    flow.freeze([*axes[:-1], *flow.of(mask)[:-1], *flow.of(source)[:-1]])
    flow.unify(axes[-1], flow.of(source)[-1])
    if sizes_of(value_of(mask))[-1] == sizes[-1]:
        flow.unify(axes[-1], flow.of(mask)[-1])
    return (*[None] * (len(axes) - 1), flow.units.resolve(axes[-1]))


def _is_constant_along_last(node: fx.Node) -> bool:
    """Whether all elements along the last dimension are equal because it was expanded from one."""
    while name_of(node) in _SAME_VALUES and sizes_of(value_of(node))[-1] != 1:
        node = node.all_input_nodes[0]
    return sizes_of(value_of(node))[-1:] == (1,)


def _is_known_line(flow: Flow, node: fx.Node) -> bool:
    """Whether an index is a constant vector."""
    known = flow.constants.get(node)
    return isinstance(known, Tensor) and known.ndim == 1 and not known.is_meta and known.dtype is torch.int64
