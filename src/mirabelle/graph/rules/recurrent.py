"""RNN, LSTM and GRU: the gates of a hidden unit are removed together.

Each layer and direction has units of its own, and all must lose the same number. If initial states are given or final states
are read, they form one tensor, and the units of all layers and directions are tied. A projected LSTM has two kinds of units:
cells and projected outputs.
"""

from __future__ import annotations

import operator

import numpy as np

from mirabelle.graph.call import Call, is_tensor, sizes_of, value_of
from mirabelle.graph.flow import Flow, Results, untouched
from mirabelle.graph.units import Axis

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
NAMES = tuple(_GATES)


def recurrent(flow: Flow, call: Call) -> Results:
    """(output, states): the output concatenates the widths of all directions."""
    if "input" not in call.arguments or "params" not in call.arguments or "batch_first" not in call.arguments:
        return flow.freeze_all(call)
    gates, biased = _GATES[call.name], bool(call["has_biases"])
    directions, layers = 1 + bool(call["bidirectional"]), int(call["num_layers"])
    states = list(call["hx"]) if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    params = list(call["params"])
    per_layer = len(params) // (directions * layers)
    projected = per_layer > (4 if biased else 2)
    apart = all(state in flow.constants for state in states) and not _reads_states(call)
    outputs = _units(flow, sizes_of(value_of(params[1]))[1], layers * directions, apart=apart)
    hidden = _units(flow, sizes_of(value_of(params[1]))[0] // gates, layers * directions, apart=apart) if projected else outputs
    for state, widths in zip(states, (outputs, hidden), strict=False):
        flow.unify(widths[0], flow.of(state)[-1])
        flow.freeze(flow.of(state)[:1])
    flowing = flow.of(call["input"])[-1]
    for layer in range(layers):
        own = outputs[layer * directions : (layer + 1) * directions]
        for direction, units in enumerate(own):
            place = per_layer * (layer * directions + direction)
            inputs, recurrence, *biases = params[place : place + per_layer]
            cells = hidden[layer * directions + direction]
            gate = None if cells is None else np.tile(cells, (gates, 1))
            if projected:
                projection = biases.pop()
                flow.unify(flow.of(projection)[0], units)
                flow.unify(flow.of(projection)[1], cells)
                flow.mask(call, ("params", place + per_layer - 1), 1, cells)
            for node in (inputs, recurrence, *biases):
                flow.unify(flow.of(node)[0], gate)
            flow.unify(flow.of(inputs)[1], flowing)
            flow.unify(flow.of(recurrence)[1], units)
            flow.mask(call, ("params", place), 1, flowing)
            flow.mask(call, ("params", place + 1), 1, units)
        flowing = _concatenated(own)
    before = flow.of(call["input"])[:-1]
    flow.freeze([before[1 if call["batch_first"] else 0]])
    results = untouched(value_of(call.node))
    assert isinstance(results, list), "an output and states"
    results[0] = (*before, flow.units.resolve(flowing))
    for k in range(1, len(results)):
        results[k] = (*results[k][:-1], flow.units.resolve((outputs, hidden)[k - 1][0]))
    return results


def cell(flow: Flow, call: Call) -> Results:
    """One step of a recurrent network: new states have the units of the old ones."""
    gates = _GATES[call.name.removesuffix("_cell")]
    states = list(call["hx"]) if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    hidden = flow.of(states[0])[-1]
    size = sizes_of(value_of(states[0]))[-1]
    if hidden is None:
        hidden = flow.fresh(size)
        flow.freeze([hidden])
    inputs = flow.of(call["input"])[-1]
    for state in states[1:]:
        flow.unify(flow.of(state)[-1], hidden)
    gate = None if hidden is None else np.tile(hidden, (gates, 1))
    for name in ("w_ih", "w_hh", "b_ih", "b_hh"):
        if is_tensor(call.get(name)):
            flow.unify(flow.of(call[name])[0], gate)
    flow.unify(flow.of(call["w_ih"])[1], inputs)
    flow.unify(flow.of(call["w_hh"])[1], hidden)
    flow.mask(call, "w_ih", 1, inputs)
    flow.mask(call, "w_hh", 1, hidden)
    out = (*flow.of(call["input"])[:-1], flow.units.resolve(hidden))
    value = value_of(call.node)
    return [out for _ in value] if isinstance(value, (list, tuple)) else out


def _units(flow: Flow, size: int, count: int, *, apart: bool) -> list[Axis]:
    """The units of each layer and direction: separate ones of the same number if they may differ, otherwise the same."""
    if not apart:
        return [flow.fresh(size)] * count
    axes = [flow.fresh(size) for _ in range(count)]
    if count > 1:
        flow.equal.append(axes)
    return axes


def _reads_states(call: Call) -> bool:
    """Whether any result other than the output is read."""
    return any(user.target is not operator.getitem or user.args[1] != 0 for user in call.node.users if user.users)


def _concatenated(units: list[Axis]) -> Axis:
    """The concatenated outputs of all directions."""
    known = [axis for axis in units if axis is not None]
    return np.concatenate(known) if len(known) == len(units) else None
