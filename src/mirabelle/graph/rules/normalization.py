"""Normalizations: per-channel ones pass all axes; over an axis, they compute a statistic of the kept elements."""

from __future__ import annotations

from mirabelle.graph.call import Call, is_tensor, sizes_of, value_of
from mirabelle.graph.flow import Axes, Flow, Results
from mirabelle.graph.units import product


def by_channel(flow: Flow, call: Call) -> Results:
    """Batch and instance normalization: channels are tied to their scale, shift and running statistics."""
    axes = list(flow.of(call["input"]))
    for name in ("weight", "bias", "running_mean", "running_var"):
        if is_tensor(call.get(name)):
            flow.unify(axes[1], flow.of(call[name])[0])
    result = tuple(flow.units.resolve(axis) for axis in axes)
    if call.get("use_input_stats") or call.get("training") or not is_tensor(call.get("running_mean")):
        _over_others(flow, call, result, 2 if call.name == "instance_norm" else 0)
    value = value_of(call.node)
    return [result, *[(None,) * part.ndim for part in value[1:]]] if isinstance(value, (list, tuple)) else result


def _over_others(flow: Flow, call: Call, axes: Axes, first: int) -> None:
    """All dimensions from this one on, except channels, are averaged over: a statistic of the kept elements."""
    dimensions = tuple(d for d in range(first, len(axes)) if d != 1 and axes[d] is not None)
    if dimensions:
        flow.statistics[call.node] = dimensions


def over_last(flow: Flow, call: Call) -> Results:
    """Layer and root-mean-square normalization over the last dimensions."""
    axes = list(flow.of(call["input"]))
    shape = [int(size) for size in call["normalized_shape"]]
    count = len(shape)
    for name in ("weight", "bias"):
        if is_tensor(call.get(name)):
            for k in range(1, count + 1):
                flow.unify(axes[-k], flow.of(call[name])[-k])
    axes = [flow.units.resolve(axis) for axis in axes]
    if any(axis is not None for axis in axes[-count:]):
        flow.statistics[call.node] = tuple(range(len(axes) - count, len(axes)))
        last = list(zip(axes[-count:], shape, strict=True))
        flow.rewrite(call, None, normalized_shape=lambda kept: [kept.count(axis, size) for axis, size in last])
    value = value_of(call.node)
    return [tuple(axes), *[(None,) * part.ndim for part in value[1:]]] if isinstance(value, (list, tuple)) else tuple(axes)


def over_groups(flow: Flow, call: Call) -> Results:
    """Group normalization: only whole groups can be removed; a single group works as in layer normalization."""
    axes, sizes = list(flow.of(call["input"])), sizes_of(value_of(call["input"]))
    groups = int(call["num_groups"])
    if groups > 1:
        group, size = flow.fresh(groups), sizes[1] // groups
        flow.unify(axes[1], product([(group, groups), (None, size)]))
        flow.rewrite(call, None, num_groups=lambda kept: kept.count(group, groups))
    for name in ("weight", "bias"):
        if is_tensor(call.get(name)):
            flow.unify(axes[1], flow.of(call[name])[0])
    result = tuple(flow.units.resolve(axis) for axis in axes)
    dimensions = tuple(d for d in range(1, len(axes)) if (d > 1 or groups == 1) and result[d] is not None)
    if dimensions:
        flow.statistics[call.node] = dimensions
    return result
