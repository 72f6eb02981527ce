"""Convolutions. Weights are (out, in / groups, k...); transposed, (in, out / groups, k...)."""

from __future__ import annotations

from mirabelle.graph.call import Call, is_tensor, number_of, sizes_of, value_of
from mirabelle.graph.flow import Flow, Results
from mirabelle.graph.units import Axis, product


def convolution(flow: Flow, call: Call) -> Results:
    """y[o] = Σᵢ w[o, i] * x[i] within each group. Whole groups can be removed, or the same channels in all groups."""
    transposed = "transpose" in call.name or bool(call.get("transposed"))
    groups = call.get("groups", 1)
    inputs = list(flow.of(call["input"]))
    weight, sizes = list(flow.of(call["weight"])), sizes_of(value_of(call["weight"]))
    channels = len(inputs) - len(sizes) + 1
    flow.freeze([*inputs[channels + 1 :], *weight[2:]])
    summed, free = (weight[0], weight[1]) if transposed else (weight[1], weight[0])
    if groups == 1:
        flow.unify(inputs[channels], summed)
        flow.mask(call, "input", channels, inputs[channels])
        out = free
    else:
        out = _grouped(flow, call, (inputs[channels], channels), weight, transposed=transposed)
    if is_tensor(call.get("bias")):
        flow.unify(out, flow.of(call["bias"])[0])
    before = inputs[:channels]
    count = len(sizes_of(value_of(call.node)))
    return tuple(flow.units.resolve(axis) for axis in (*before, out, *[None] * (count - channels - 1)))


def _grouped(flow: Flow, call: Call, channels: tuple[Axis, int], weight: list[Axis], *, transposed: bool) -> Axis:
    """Input channels are groups × a dimension of the weight, output channels groups × new units; reversed if transposed."""
    sizes, written = sizes_of(value_of(call["weight"])), call["groups"]
    groups = written if isinstance(written, int) else number_of(value_of(written))
    group = flow.fresh(groups) if isinstance(written, int) else None  # otherwise one group per sample, a computed number
    across, within = sizes[0] // groups, sizes[1]
    inner = flow.fresh(across)
    flow.unify(weight[0], product([(group, groups), (inner, across)]))
    passing = product([(group, groups), (weight[1], within)])
    whole = product([(group, groups), (inner, across)])
    flow.unify(channels[0], whole if transposed else passing)
    flow.mask(call, "input", channels[1], channels[0])
    if isinstance(written, int):
        flow.rewrite(call, None, groups=lambda kept: kept.count(group, groups))
    return passing if transposed else whole
