"""Pooling and upsampling: batch and channels pass, spatial dimensions are frozen."""

from __future__ import annotations

from torch import Tensor

from mirabelle.graph.call import Call, sizes_of, value_of
from mirabelle.graph.flow import Axes, Flow, Results

_SPACE = {"1d": 1, "2d": 2, "3d": 3}
NAMES = (
    *(f"{kind}{n}" for kind in ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool") for n in _SPACE),
    *(f"_adaptive_avg_pool{n}" for n in ("2d", "3d")), *(f"max_pool{n}_with_indices" for n in _SPACE),
    *(f"upsample_nearest{n}" for n in _SPACE),
    "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
    *(f"_upsample_nearest_exact{n}" for n in _SPACE), "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
)  # fmt: skip


def spatial(flow: Flow, call: Call) -> Results:
    """The last dimensions are spatial and frozen."""
    node = call["self"] if "self" in call.arguments else call["input"]
    axes = flow.of(node)
    count = next((n for text, n in _SPACE.items() if text in call.name), 2)
    flow.freeze(axes[len(axes) - count :])
    passed: Axes = (*axes[: len(axes) - count], *[None] * count)
    value = value_of(call.node)
    if isinstance(value, (list, tuple)):
        return [passed if isinstance(part, Tensor) else () for part in value]
    return passed if len(sizes_of(value)) == len(passed) else flow.freeze_all(call)


def sampled(flow: Flow, call: Call) -> Results:
    """`grid_sampler`: values of a map at the places of a grid; channels pass, one batch belongs to both, places are frozen."""
    axes, grid = list(flow.of(call["input"])), flow.of(call["grid"])
    flow.freeze([*axes[2:], *grid[1:]])
    flow.unify(axes[0], grid[0])
    return (flow.units.resolve(axes[0]), flow.units.resolve(axes[1]), *[None] * (len(axes) - 2))


def placed(flow: Flow, call: Call) -> Results:
    """`affine_grid_generator`: a grid of places for each matrix, all of which is frozen."""
    flow.freeze(flow.of(call["theta"]))
    return (None,) * len(sizes_of(value_of(call.node)))


def unpooled(flow: Flow, call: Call) -> Results:
    """`max_unpool`: maxima are written back to their positions in each channel; positions are frozen."""
    axes, indices = flow.of(call["self"]), flow.of(call["indices"])
    count = 2 if "2d" in call.name else 3
    for d, (own, other) in enumerate(zip(axes, indices, strict=True)):
        if d < len(axes) - count:
            flow.unify(own, other)
        else:
            flow.freeze([own, other])
    return (*(flow.units.resolve(axis) for axis in axes[: len(axes) - count]), *[None] * count)
