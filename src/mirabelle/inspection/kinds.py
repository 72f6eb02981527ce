"""A description of the units of an axis group, such as "channels of a convolution"; "units" if the program is not clear."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import fx

from mirabelle.graph.call import Call, is_tensor, sizes_of, value_of
from mirabelle.graph.flow import Flow
from mirabelle.graph.groups import AxisGroup
from mirabelle.graph.trace import Program
from mirabelle.graph.units import Array, Axis

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_PRODUCTS = {"addmm": ("mat1", "mat2"), "mm": ("self", "mat2"), "matmul": ("self", "other"), "bmm": ("self", "mat2")}
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_PASSED = ("mul", "div", "add", "sub", "masked_fill", "where", "_to_copy", "to", "clone", "dropout", "alias", "contiguous")
_STEPS = 12  # most nodes between a softmax and the matrix products before and after it
_BATCH_HEADS_LENGTH_WIDTH = 4


def kinds_of(program: Program, flow: Flow, groups: Sequence[AxisGroup]) -> list[str]:
    """A description of the units of each group, such as "channels of a convolution".

    Heads and dimensions of heads are recognized by attention, written as one operator or as a softmax between two matrix
    products; key-value groups by key heads that several query heads share; a residual stream by an addition of two values that
    both have the group's units. All other groups are described by the layers that compute them.

    Args:
        program: the traced model.
        flow: the program's axes.
        groups: all groups of the program, or some.
    """
    owners = np.full(flow.units.count, -1)
    for place, group in enumerate(groups):
        owners[group.units] = place
    found: dict[int, str] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and node in flow.axes:
            for axis, column, words in _described_by(flow, Call.of(node)):
                for place in _owning(flow, owners, axis, column):
                    found[place] = _joined(found.get(place), words)
    made, streams = _made_by(program, flow, owners), _streams(program, flow, owners)
    return [found.get(place) or _by_layers(made.get(place, {}), stream=place in streams) for place in range(len(groups))]


def _described_by(flow: Flow, call: Call) -> Iterator[tuple[Axis, int | None, str]]:
    """(axis, its column or None for all columns, description of its units), as far as one operator shows it."""
    if call.name == "scaled_dot_product_attention" and len(sizes_of(value_of(call["query"]))) == _BATCH_HEADS_LENGTH_WIDTH:
        yield from _attention(flow.of(call["query"]), flow.of(call["value"]))
    elif call.name in ("softmax", "_softmax"):
        yield from _written_attention(flow, call)
    elif call.name in _RECURRENT and "params" in call.arguments:
        for weight in call["params"][1 :: 4 if call["has_biases"] else 2]:
            yield flow.of(weight)[1], None, "hidden units of a recurrent layer"
    elif call.name in _CONVOLUTIONS and int(call.get("groups", 1)) > 1:
        rows = flow.of(call["weight"])[0]
        if rows is not None and rows.shape[1] > 1:
            yield rows, 0, "groups of a convolution"
            yield rows, 1, "channels in each group of a convolution"


def _attention(query: Sequence[Axis], value: Sequence[Axis]) -> Iterator[tuple[Axis, int | None, str]]:
    heads = query[-3]
    if heads is not None and heads.shape[1] == 1:
        alone = len(np.unique(heads)) == len(heads)
        yield heads, 0, "heads of attention" if alone else "sets of heads of attention"  # that share keys and values
    elif heads is not None and heads.shape[1] == 2:  # noqa: PLR2004 (outer and inner)
        yield heads, 0, "key-value groups of attention"
        yield heads, 1, "queries in each key-value group"
    yield query[-1], None, "dimensions of queries and keys in each head"
    yield value[-1], None, "dimensions of values in each head"


def _written_attention(flow: Flow, call: Call) -> Iterator[tuple[Axis, int | None, str]]:
    """The descriptions if a softmax stands between two batched matrix products over heads."""
    before, after = call["self"], call.node
    for _ in range(_STEPS):
        if before.op != "call_function" or Call.of(before).name not in _PASSED:
            break
        wide = [part for part in before.all_input_nodes if is_tensor(part) and part not in flow.constants]
        before = next((part for part in wide if _sizes(part) == _sizes(before)), before)
    for _ in range(_STEPS):
        users = list(after.users)
        if len(users) != 1 or users[0].op != "call_function" or Call.of(users[0]).name not in _PASSED:
            break
        after = users[0]
    products = [Call.of(node) for node in (before, *after.users) if node.op == "call_function"]
    if len(products) != 2 or any(product.name != "matmul" for product in products) or products[1]["self"] is not after:  # noqa: PLR2004
        return
    query, value = products[0]["self"], products[1]["other"]
    if len(_sizes(query)) == len(_sizes(value)) == _BATCH_HEADS_LENGTH_WIDTH:
        yield from _attention(flow.of(query), flow.of(value))


def _sizes(node: fx.Node) -> tuple[int, ...]:
    return sizes_of(value_of(node))


def _owning(flow: Flow, owners: Array, axis: Axis, column: int | None) -> list[int]:
    """The indices of the groups whose units occur in an axis."""
    rows = flow.units.resolve(axis)
    if rows is None or (column is not None and column >= rows.shape[1]):
        return []
    places = np.unique(owners[rows if column is None else rows[:, column]])
    return [int(place) for place in places if place >= 0]


def _joined(before: str | None, words: str) -> str:
    places = {"dimensions of queries and keys in each head", "dimensions of values in each head"}
    if before is None or before == words:
        return words
    return "dimensions of each head" if {before, words} <= places | {"dimensions of each head"} else "units"


def _made_by(program: Program, flow: Flow, owners: Array) -> dict[int, dict[str, str]]:
    """By group: the weights whose outputs have its units, each with its kind: "layer", "convolution", "table" or "unclear"."""
    found: dict[int, dict[str, str]] = {}
    for node in program.graph.nodes:
        call = Call.of(node) if node.op == "call_function" else None
        for weight, dimension, kind in _weights(call) if call is not None else ():
            source = program.sources.get(weight.name) if is_tensor(weight) else None
            axis = flow.of(weight)[dimension] if source is not None and source.kind == "parameter" else None
            if source is not None and axis is not None:
                clear = kind if axis.shape[1] == 1 else "unclear"  # several kinds of units in one dimension
                for place in _owning(flow, owners, axis, None):
                    found.setdefault(place, {})[source.name] = clear
    return found


def _weights(call: Call) -> Iterator[tuple[fx.Node, int, str]]:
    """(weight, its dimension that the output has, kind of the layer) of an operator."""
    if call.name == "linear":
        yield call["weight"], 0, "layer"
    elif call.name in _PRODUCTS:
        yield call[_PRODUCTS[call.name][1]], -1, "layer"
    elif call.name == "embedding":
        yield call["weight"], 1, "table"
    elif call.name in _CONVOLUTIONS and (int(call.get("groups", 1)) == 1 or sizes_of(value_of(call["weight"]))[1] > 1):
        yield call["weight"], int("transpose" in call.name or bool(call.get("transposed"))), "convolution"


def _streams(program: Program, flow: Flow, owners: Array) -> set[int]:
    """The groups in which a layer's output is added to a value that the layer was computed from (residual streams)."""
    nearest: dict[fx.Node, int] = {}  # the layers from which a node is computed without another layer in between, as bits
    before: dict[int, int] = {}  # all layers that a layer depends on
    found: set[int] = set()
    for node in program.graph.nodes:
        nearest[node] = 0
        for part in node.all_input_nodes:
            nearest[node] |= nearest[part]
        if node.op != "call_function":
            continue
        call = Call.of(node)
        if any(is_tensor(weight) and weight.name in program.sources for weight, _, _ in _weights(call)):
            layer = 1 << len(before)
            before[layer] = _all_before(nearest[node], before)
            nearest[node] = layer
        parts = [part for part in node.all_input_nodes if is_tensor(part)]
        if call.name == "add" and len(parts) == 2:  # noqa: PLR2004 (a sum of two results)
            (one, other), (first, second) = parts, (nearest[part] for part in parts)
            if first & _all_before(second, before, own=False) or second & _all_before(first, before, own=False):
                mine, theirs = (
                    {k for axis in flow.of(part) for k in _owning(flow, owners, axis, None)} for part in (one, other)
                )
                found |= mine & theirs
    return found


def _all_before(layers: int, before: Mapping[int, int], *, own: bool = True) -> int:
    """The layers that these depend on, as bits; with `own` these layers, too."""
    found = layers if own else 0
    while layers:
        last = layers & -layers
        found |= before[last]
        layers ^= last
    return found


def _by_layers(made: Mapping[str, str], *, stream: bool) -> str:
    kinds, count = set(made.values()), len(made)
    if not made or "unclear" in kinds:
        return "units"
    units, makers = "features", "layers"
    if len(kinds) == 1:
        units, makers = {"layer": ("neurons", "layers"), "convolution": ("channels", "convolutions")}.get(
            next(iter(kinds)), ("features", "tables")
        )
    if stream:
        return f"{'channels' if units == 'channels' else 'features'} of a residual stream"
    return f"{units} of a {makers[:-1]}" if count == 1 else f"{units} of {count} {makers}"
