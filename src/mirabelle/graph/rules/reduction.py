"""Reductions: a sum ignores removed elements, a mean is taken over the kept ones, and any other reduction freezes its axis."""

from __future__ import annotations

from collections.abc import Sequence

from mirabelle.graph.call import Call, is_tensor, sizes_of, value_of
from mirabelle.graph.flow import Axes, Flow, Results, dimension_of
from mirabelle.graph.rules.elementwise import elementwise

SUMS = ("sum", "linalg_vector_norm", "norm", "count_nonzero", "frobenius_norm", "nansum")
MEANS = ("mean", "var", "std", "var_mean", "std_mean")
OTHERS = (
    "amax", "amin", "max", "min", "prod", "any", "all", "logsumexp", "argmax", "argmin", "median", "aminmax", "nanmean",
)  # fmt: skip
WHOLE = (
    "softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "sort", "topk",
    "logcumsumexp", "kthvalue", "diff", "cummax", "cummin", "softmin", "argsort",
)  # fmt: skip
TRANSFORMS = tuple(f"fft_{kind}{n}" for kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft") for n in ("", "2", "n"))


def reduced(flow: Flow, call: Call) -> Results:
    """Reduced dimensions disappear or have size 1; the others pass."""
    if is_tensor(call.get("other")):  # elementwise maximum or minimum of two tensors
        return elementwise(flow, call)
    node = call["self"] if is_tensor(call.get("self")) else call["input"]
    axes, name = list(flow.of(node)), "self" if is_tensor(call.get("self")) else "input"
    dimensions = _dimensions(call, len(axes))
    gone = [axes[d] for d in dimensions]
    if call.name in SUMS and _power_keeps_zero(call):
        for d in dimensions:
            flow.mask(call, name, d, axes[d])
    elif call.name in MEANS:
        if any(axis is not None for axis in gone):
            flow.statistics[call.node] = tuple(dimensions)
    else:
        flow.freeze(gone)
    keep = bool(call.get("keepdim"))
    rest: Axes = tuple(
        None if d in dimensions else flow.units.resolve(axis) for d, axis in enumerate(axes) if keep or d not in dimensions
    )
    value = value_of(call.node)
    parts = value if isinstance(value, (list, tuple)) else [value]
    if any(len(sizes_of(part)) != len(rest) for part in parts):
        return flow.freeze_all(call)
    return [rest for _ in parts] if isinstance(value, (list, tuple)) else rest


def along(flow: Flow, call: Call) -> Results:
    """Softmax, cumulative sums and sorting: their dimension is frozen, the others pass."""
    axes = list(flow.of(call["self"]))
    d = dimension_of(int(call.get("dim", -1)), len(axes))
    flow.freeze([axes[d]])
    passed: Axes = tuple(None if k == d else axis for k, axis in enumerate(axes))
    value = value_of(call.node)
    return [passed for _ in value] if isinstance(value, (list, tuple)) else passed


def transformed(flow: Flow, call: Call) -> Results:
    """Fourier transforms: every frequency depends on the whole dimension, which is frozen; the others pass."""
    axes = list(flow.of(call["self"]))
    dimensions = _dimensions(call, len(axes))
    flow.freeze([axes[d] for d in dimensions])
    return tuple(None if d in dimensions else flow.units.resolve(axis) for d, axis in enumerate(axes))


def _dimensions(call: Call, count: int) -> Sequence[int]:
    dims = call.get("dim")
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return range(count)
    return [dimension_of(int(d), count) for d in (dims if isinstance(dims, (list, tuple)) else [dims])]


def _power_keeps_zero(call: Call) -> bool:
    """Whether zeros do not contribute to a norm: true for finite orders above 0."""
    order = call.get("ord", call.get("p", 2))
    return order is None or (isinstance(order, (int, float)) and 0 < order < float("inf"))
