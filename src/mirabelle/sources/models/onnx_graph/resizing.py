"""The ONNX operators Resize and Upsample: PyTorch's interpolation where it is the same, else weights along each axis."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from mirabelle.sources.models.onnx_graph.nodes import Node, operator
from mirabelle.sources.models.onnx_graph.shaping import axes_of
from mirabelle.sources.models.onnx_graph.values import Value, integers_of

_INTERPOLATIONS = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}
_CUBIC = -0.75  # the coefficient of PyTorch


@operator("Resize", "Upsample")
def resize(node: Node, x: Tensor, *rest: Value) -> Tensor:
    """Nearest, linear and cubic interpolation to sizes, or by factors."""
    region, scales, sizes = (None, *rest, None)[:3] if len(rest) == 1 else (*rest, None)[:3]
    axes = [axis % x.ndim for axis in axes_of(node, None) or range(x.ndim)]
    scales = node["scales"] if scales is None and sizes is None else scales
    lengths: list[Any] = [x.shape[axis] for axis in axes]
    if sizes is not None:
        targets, factors = _targets(node, lengths, list(integers_of(sizes)))
    else:
        factors = [float(factor) for factor in (scales.tolist() if isinstance(scales, Tensor) else scales)]
        targets = [
            length if factor == 1.0 else math.floor(length * factor) for length, factor in zip(lengths, factors, strict=True)
        ]
    if _is_interpolation(node, x, axes, (targets, factors)):
        name = _INTERPOLATIONS[node["mode"], x.ndim]
        aligned = node["coordinate_transformation_mode"] == "align_corners"
        if sizes is not None or aligned:
            return F.interpolate(x, size=targets[2:], mode=name, align_corners=aligned)
        return F.interpolate(x, scale_factor=factors[2:], mode=name, align_corners=False, recompute_scale_factor=False)
    how = node["coordinate_transformation_mode"] or "asymmetric"
    if how == "tf_crop_and_resize":
        bounds = [float(number) for number in region.tolist()] if isinstance(region, Tensor) else [0.0, 1.0] * len(axes)
    else:
        bounds = []
    for k, axis in enumerate(axes):
        unchanged = isinstance(factors[k], float) and factors[k] == 1.0 and not bounds
        if not unchanged:
            part = (bounds[k], bounds[k + len(axes)]) if bounds else None
            x = _along(node, x, axis, (targets[k], factors[k]), part)
    return x


def _targets(node: Node, lengths: list[Any], sizes: list[Any]) -> tuple[list[Any], list[Any]]:
    """The sizes of the result, and the factors to them; the policy may keep the ratio of the sizes."""
    policy = node["keep_aspect_ratio_policy"] or "stretch"
    if policy == "stretch":
        same = [statically_known_true(size == length) for size, length in zip(sizes, lengths, strict=True)]
        return sizes, [1.0 if equal else size / length for equal, size, length in zip(same, sizes, lengths, strict=True)]
    factor = (min if policy == "not_larger" else max)(size / length for size, length in zip(sizes, lengths, strict=True))
    return [math.floor(factor * length + 0.5) for length in lengths], [factor] * len(lengths)


def _is_interpolation(node: Node, x: Tensor, axes: list[int], to: tuple[list[Any], list[Any]]) -> bool:
    """Whether PyTorch's function computes the same."""
    how, mode, (targets, factors) = node["coordinate_transformation_mode"], node["mode"], to
    known = (mode, x.ndim) in _INTERPOLATIONS and how in ("half_pixel", "pytorch_half_pixel", "align_corners")
    if not known or axes != list(range(x.ndim)) or node["antialias"] or node["exclude_outside"]:
        return False
    if (node["keep_aspect_ratio_policy"] or "stretch") != "stretch" or x.shape[2:] == tuple(targets[2:]):
        return False
    if mode == "cubic" and abs(node["cubic_coeff_a"] - _CUBIC) > 1e-6:  # noqa: PLR2004 (the rounding of float32)
        return False
    outer = all(isinstance(factor, float) and factor == 1.0 for factor in factors[:2])
    exact = all(target == length * factor for target, length, factor in zip(targets[2:], x.shape[2:], factors[2:], strict=True))
    return outer and (how == "half_pixel" or (exact and 1 not in targets[2:]))


def _along(node: Node, x: Tensor, axis: int, to: tuple[int, Any], part: tuple[float, float] | None) -> Tensor:
    """The interpolation along one axis, whose length is known, to a length and by a factor."""
    target, factor = to
    length = x.shape[axis]
    places = _places(node, length, target, factor, part)
    outside = (places < 0) | (places > length - 1) if part is not None else None
    if node["mode"] == "nearest":
        found = x.index_select(axis, _rounded(node, places).long().clamp(0, length - 1).to(x.device))
    else:
        weights = _weights(node, places, length, factor)
        kind = x.dtype if x.is_floating_point() else torch.float64
        found = (x.to(kind).movedim(axis, -1) @ weights.T.to(x.device, kind)).movedim(-1, axis).to(x.dtype)
    if outside is not None and bool(outside.any()):
        shape = [-1 if k == axis else 1 for k in range(x.ndim)]
        fill = torch.full((), node["extrapolation_value"], dtype=x.dtype, device=x.device)
        found = torch.where(outside.reshape(shape).to(x.device), fill, found)
    return found


def _places(node: Node, length: int, target: int, factor: Any, part: tuple[float, float] | None) -> Tensor:
    """Where the elements of the result are among those of the input."""
    how, steps = node["coordinate_transformation_mode"] or "asymmetric", torch.arange(target, dtype=torch.float64)
    exact = length * factor  # the length of the result before it is rounded
    half = (steps + 0.5) / factor - 0.5
    if part is not None:
        begin, end = part
        middle = torch.full_like(steps, 0.5 * (begin + end) * (length - 1))
        return begin * (length - 1) + steps * ((end - begin) * (length - 1) / (target - 1)) if target > 1 else middle
    places: dict[str, Tensor] = {
        "asymmetric": steps / factor,
        "align_corners": steps * ((length - 1) / (exact - 1)) if exact != 1 else steps * 0,
        "half_pixel": half,
        "half_pixel_symmetric": half + length / 2 * (1 - target / exact),
        "pytorch_half_pixel": half if exact > 1 else steps * 0,
    }
    if how not in places:
        raise node.refuse(f"coordinates {how}")
    return places[how]


def _rounded(node: Node, places: Tensor) -> Tensor:
    rounding = node["nearest_mode"] or "floor"
    if rounding == "ceil":
        return torch.ceil(places)
    if rounding == "round_prefer_floor":
        return torch.ceil(places - 0.5)
    return torch.floor(places + 0.5) if rounding == "round_prefer_ceil" else torch.floor(places)


def _weights(node: Node, places: Tensor, length: int, factor: Any) -> Tensor:
    """The weight (result, input) of every element; elements outside count as the border, or not at all."""
    wide = 1 / min(float(factor), 1.0) if node["antialias"] else 1.0  # a smaller result averages over more elements
    reach = math.ceil((1.0 if node["mode"] == "linear" else 2.0) * wide) + 1
    steps = places.floor()[:, None] + torch.arange(-reach + 1, reach + 1, dtype=torch.float64)
    distance = (steps - places[:, None]).abs() / wide
    if node["mode"] == "linear":
        parts = (1 - distance).clamp(min=0.0)
    else:
        a = node["cubic_coeff_a"]
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        parts = torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))  # noqa: PLR2004
    if node["exclude_outside"] or node["antialias"]:
        within = (steps >= 0) & (steps < length) if node["exclude_outside"] else torch.ones_like(steps, dtype=torch.bool)
        parts = torch.where(within, parts, torch.zeros_like(parts))
        parts = parts / parts.sum(1, keepdim=True)
    index = steps.clamp(0, length - 1).long()
    return torch.zeros(len(places), length, dtype=torch.float64).scatter_add(1, index, parts)
