"""Contractions (sums of products): summed dimensions of both operands are tied, the others pass to the result."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

import numpy as np
from torch import fx

from mirabelle.graph.call import Call, is_tensor, sizes_of, value_of
from mirabelle.graph.flow import Axes, Flow, Place, Results, broadcast, dimension_of
from mirabelle.graph.units import Axis, product


def linear(flow: Flow, call: Call) -> Results:
    """y[..., o] = Σᵢ x[..., i] · w[o, i] + b[o]."""
    inputs, weight = flow.of(call["input"]), flow.of(call["weight"])
    flow.unify(inputs[-1], weight[-1])
    flow.mask(call, "input", len(inputs) - 1, inputs[-1])
    flow.mask(call, "weight", len(weight) - 1, weight[-1])
    if len(weight) == 1:
        return inputs[:-1]
    out = weight[0]
    if is_tensor(call.get("bias")):
        flow.unify(out, flow.of(call["bias"])[0])
    return (*inputs[:-1], flow.units.resolve(out))


def matmul(flow: Flow, call: Call) -> Results:
    """`matmul`, `mm`, `bmm`, `mv`, `dot`: sum over the last dimension of x and the second-last of y; others broadcast."""
    names = [name for name, value in call.arguments.items() if is_tensor(value)][:2]
    return _product(flow, call, names[0], names[1])


def grouped(flow: Flow, call: Call) -> Results:
    """Blocks of rows, each multiplied by its own matrix, as in mixtures of experts; neither rows nor matrices are removed."""
    one, other = [name for name, value in call.arguments.items() if is_tensor(value)][:2]
    left, right = flow.of(call[one]), flow.of(call[other])
    if len(left) != 2 or len(right) != 3:  # noqa: PLR2004 (a matrix of rows, and a stack of matrices)
        return flow.freeze_all(call)
    flow.freeze([left[0], right[0]])
    flow.unify(left[1], right[1])
    flow.mask(call, one, 1, left[1])
    flow.mask(call, other, 1, right[1])
    if is_tensor(call.get("bias")):
        flow.freeze(flow.of(call["bias"]))
        flow.freeze([right[2]])
    return (None, flow.units.resolve(right[2]))


def addmm(flow: Flow, call: Call) -> Results:
    """a + x · y, for two or three dimensions (`addmm`, `baddbmm`, `addmv`)."""
    names = [name for name, value in call.arguments.items() if is_tensor(value)]
    out = _product(flow, call, names[1], names[2])
    added, sizes = flow.of(call[names[0]]), sizes_of(value_of(call[names[0]]))
    whole = sizes_of(value_of(call.node))
    for k in range(1, len(added) + 1):
        if sizes[-k] == whole[-k] > 1:
            flow.unify(added[-k], out[-k])
    return tuple(flow.units.resolve(axis) for axis in out)


def _product(flow: Flow, call: Call, one: str, other: str) -> Axes:
    left, right = list(flow.of(call[one])), list(flow.of(call[other]))
    sizes = [list(sizes_of(value_of(call[name]))) for name in (one, other)]
    flow.unify(left[-1], right[-2] if len(right) > 1 else right[-1])
    place = len(right) - 2 if len(right) > 1 else 0
    flow.mask(call, one, len(left) - 1, left[-1])  # mask both sides, since 0 · NaN is NaN
    flow.mask(call, other, place, right[place])
    free = [*(left[-2:-1] if len(left) > 1 else []), *(right[-1:] if len(right) > 1 else [])]
    batch = _batches(flow, left[:-2], right[:-2], sizes[0][:-2], sizes[1][:-2])
    return tuple(flow.units.resolve(axis) for axis in (*batch, *free))


def _batches(flow: Flow, one: Sequence[Axis], other: Sequence[Axis], mine: Sequence[int], theirs: Sequence[int]) -> list[Axis]:
    """Axes of the leading dimensions, which broadcast."""
    count = max(len(one), len(other))
    result: list[Axis] = []
    for k in range(count, 0, -1):
        left = (one[-k], mine[-k]) if k <= len(one) else (None, 1)
        right = (other[-k], theirs[-k]) if k <= len(other) else (None, 1)
        if left[1] == right[1]:
            flow.unify(left[0], right[0])
        result.append(left[0] if left[1] >= right[1] else right[0])
    return result


def einsum(flow: Flow, call: Call) -> Results:
    """`einsum`: dimensions with the same letter are tied; letters missing from the result are summed over."""
    nodes: list[fx.Node] = list(call["tensors"])
    terms, output = _letters(str(call["equation"]), [len(flow.of(node)) for node in nodes])
    axes: dict[str, Axis] = {}
    sizes: dict[str, int] = {}
    for term, node in zip(terms, nodes, strict=True):
        for letter, axis, size in zip(term, flow.of(node), sizes_of(value_of(node)), strict=True):
            if letter in axes and size == sizes[letter]:
                flow.unify(axes[letter], axis)
            elif size >= sizes.get(letter, 0):
                axes[letter], sizes[letter] = axis, size
    for position, term in enumerate(terms):
        for dimension, letter in enumerate(term):
            if letter not in output:
                place: Place = ("tensors", position)
                flow.mask(call, place, dimension, axes[letter])
    return tuple(flow.units.resolve(axes[letter]) for letter in output)


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, with dots replaced by one letter per dimension.

    Example:
        >>> _letters("...i, ij", [3, 2])
        (['abi', 'ij'], 'abj')
    """
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    counts = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    spare = "".join(letter for letter in string.ascii_letters if letter not in equation)[: max(counts)]
    if not arrow:
        named = inputs.replace(".", "").replace(",", "")
        output = "..." + "".join(letter for letter in sorted(set(named)) if named.count(letter) == 1)
    filled = [term.replace("...", spare[len(spare) - count :]) for term, count in zip(terms, counts, strict=True)]
    return filled, output.replace("...", spare)


def bilinear(flow: Flow, call: Call) -> Results:
    """y[..., o] = Σᵢⱼ x[..., i] · w[o, i, j] · z[..., j] + b[o]."""
    weight = flow.of(call["weight"])
    for name, summed in (("input1", weight[1]), ("input2", weight[2])):
        inputs = flow.of(call[name])
        flow.unify(inputs[-1], summed)
        flow.mask(call, name, len(inputs) - 1, inputs[-1])
    if is_tensor(call.get("bias")):
        flow.unify(weight[0], flow.of(call["bias"])[0])
    one, other = flow.of(call["input1"])[:-1], flow.of(call["input2"])[:-1]
    for left, right in zip(one, other, strict=True):
        flow.unify(left, right)
    return tuple(flow.units.resolve(axis) for axis in (*one, weight[0]))


def distances(flow: Flow, call: Call) -> Results:
    """Distances between all rows of two matrices: a sum over their width, or a maximum, which freezes it."""
    one, other = list(flow.of(call["x1"])), list(flow.of(call["x2"]))
    flow.unify(one[-1], other[-1])
    if 0 < float(call["p"]) < math.inf:
        flow.mask(call, "x1", len(one) - 1, one[-1])
        flow.mask(call, "x2", len(other) - 1, other[-1])
    else:
        flow.freeze([one[-1]])
    sizes = [list(sizes_of(value_of(call[name])))[:-2] for name in ("x1", "x2")]
    batch = _batches(flow, one[:-2], other[:-2], *sizes)
    return tuple(flow.units.resolve(axis) for axis in (*batch, one[-2], other[-2]))


def cosine(flow: Flow, call: Call) -> Results:
    """Cosine similarity Σᵢ xᵢ · yᵢ / (‖x‖ · ‖y‖) along one dimension; the others broadcast."""
    nodes = {name: call[name] for name in ("x1", "x2")}
    sizes = {name: sizes_of(value_of(node)) for name, node in nodes.items()}
    whole = np.broadcast_shapes(*sizes.values())
    axes = list(broadcast(flow, list(nodes.values()), whole))
    d = dimension_of(int(call["dim"]), len(whole))
    for name, node in nodes.items():
        own = d - len(whole) + len(sizes[name])
        if own < 0 or sizes[name][own] != whole[d]:  # a broadcast number: its norm depends on the full width
            flow.freeze([axes[d]])
        else:
            flow.mask(call, name, own, flow.of(node)[own])
    return tuple(flow.units.resolve(axis) for k, axis in enumerate(axes) if k != d)


def attention(flow: Flow, call: Call) -> Results:
    """softmax(q · kᵀ · s + mask) · v: heads of q, k and v are tied, the width of q and k is summed over, keys are frozen."""
    names = ("query", "key", "value")
    q, k, v = (list(flow.of(call[name])) for name in names)
    sizes = {name: sizes_of(value_of(call[name])) for name in names}
    flow.unify(q[-1], k[-1])
    flow.mask(call, "query", len(q) - 1, q[-1])
    flow.mask(call, "key", len(k) - 1, k[-1])
    flow.freeze([k[-2], v[-2]])
    if call.get("is_causal"):
        flow.freeze([q[-2]])
    for d in range(len(q) - 2):
        _unify_heads(flow, (q[d], sizes["query"][d]), (k[d], sizes["key"][d]), grouped=bool(call.get("enable_gqa")))
        _unify_heads(flow, (k[d], sizes["key"][d]), (v[d], sizes["value"][d]), grouped=False)
    if is_tensor(call.get("attn_mask")):
        added, own = flow.of(call["attn_mask"]), sizes_of(value_of(call["attn_mask"]))
        flow.freeze([added[-1]])
        for d in range(1, len(own) + 1):
            if 1 < d <= len(q) and own[-d] > 1 and own[-d] == sizes["query"][-d]:
                flow.unify(added[-d], q[-d])
    if call.get("scale") is None and q[-1] is not None:
        scale = sizes["query"][-1] ** -0.5
        flow.rewrite(call, None, scale=lambda _: scale)
    return tuple(flow.units.resolve(axis) for axis in (*q[:-1], v[-1]))


def _unify_heads(flow: Flow, one: tuple[Axis, int], other: tuple[Axis, int], *, grouped: bool) -> None:
    if one[1] == other[1]:
        flow.unify(one[0], other[0])
    elif grouped and one[1] % max(other[1], 1) == 0:
        times = one[1] // other[1]
        flow.unify(one[0], product([(other[0], other[1]), (flow.fresh(times), times)]))
    else:
        flow.freeze([one[0], other[0]])
