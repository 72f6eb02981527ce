"""ONNX operators over feature maps as functions: convolution, pooling, normalization; and the padding of the standard."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mirabelle.sources.models.onnx_graph.nodes import Node, operator
from mirabelle.sources.models.onnx_graph.values import Value

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_TRANSPOSED = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}
_MAX_POOLS = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}
_AVERAGE_POOLS = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}

Pairs = list[tuple[int, int]]


def spread(node: Node, name: str, count: int) -> list[int]:
    """An attribute with one number for each spatial axis; ones by default."""
    return list(node[name] or [1] * count)


def pads_of(node: Node, sizes: Any, kernel: list[int], strides: list[int], dilations: list[int]) -> Pairs:
    """The padding (before, after) of every spatial axis, from the node's `pads` or computed for its `auto_pad`.

    Args:
        node: a convolution or pooling.
        sizes: spatial sizes of the input.
        kernel: kernel size for each axis.
        strides: for each axis.
        dilations: for each axis.
    """
    mode = node["auto_pad"] or "NOTSET"
    if mode == "VALID":
        return [(0, 0)] * len(kernel)
    if mode == "NOTSET":
        pads = node["pads"] or [0] * (2 * len(kernel))
        return list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))
    found = []
    for size, side, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (side - 1) * dilation + 1 - size, 0)
        less, more = total // 2, total - total // 2
        found.append((less, more) if mode == "SAME_UPPER" else (more, less))
    return found


def padded(x: Tensor, pads: Pairs, value: float = 0.0) -> Tensor:
    """The feature map, padded with a constant value."""
    if not any(itertools.chain(*pads)):
        return x
    return F.pad(x, list(itertools.chain(*reversed(pads))), value=value)


def is_even(pads: Pairs) -> bool:
    """Whether the padding of every axis is symmetric and not negative."""
    return all(before == after and before >= 0 for before, after in pads)


@operator("Conv")
def convolution(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Value:
    """A convolution whose weight is not constant; one with a constant weight becomes a PyTorch layer."""
    count = x.ndim - 2
    strides, dilations = (spread(node, name, count) for name in ("strides", "dilations"))
    pads = pads_of(node, x.shape[2:], list(weight.shape[2:]), strides, dilations)
    convolve: Any = _CONVOLUTIONS[x.ndim]
    return convolve(padded(x, pads), weight, bias, strides, 0, dilations, node["group"])


@operator("ConvTranspose")
def transposed_convolution(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    count = x.ndim - 2
    kernel = list(weight.shape[2:])
    strides, dilations = (spread(node, name, count) for name in ("strides", "dilations"))
    extra = list(node["output_padding"] or [0] * count)
    transpose: Any = _TRANSPOSED[x.ndim]
    whole = transpose(x, weight, bias, strides, 0, extra, node["group"], dilations)
    if node["output_shape"]:
        totals = [length - wanted for length, wanted in zip(whole.shape[2:], node["output_shape"][-count:], strict=True)]
        upper = node["auto_pad"] == "SAME_UPPER"
        cuts = [(total // 2, total - total // 2) if upper else (total - total // 2, total // 2) for total in totals]
    elif (node["auto_pad"] or "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        totals = [length - size * stride for length, size, stride in zip(whole.shape[2:], x.shape[2:], strides, strict=True)]
        cuts = [(total // 2, total - total // 2) for total in totals]
    else:
        cuts = pads_of(node, x.shape[2:], kernel, strides, dilations)
    return F.pad(whole, [-side for pair in reversed(cuts) for side in pair])


@operator("MaxPool")
def max_pool(node: Node, x: Tensor) -> Value:
    kernel, count = list(node["kernel_shape"]), x.ndim - 2
    strides, dilations = (spread(node, name, count) for name in ("strides", "dilations"))
    pads = pads_of(node, x.shape[2:], kernel, strides, dilations)
    if len([name for name in node.outputs if name]) > 1:
        return _max_with_places(node, x, pads)
    pool: Any = _MAX_POOLS[x.ndim]
    if not x.is_floating_point():
        return _max_of_integers(node, x)
    if is_even(pads) and all(2 * before <= side for (before, _), side in zip(pads, kernel, strict=True)):
        return pool(x, kernel, strides, [before for before, _ in pads], dilations, ceil_mode=bool(node["ceil_mode"]))
    bordered = padded(x, pads, float("-inf"))
    return pool(bordered, kernel, strides, 0, dilations, ceil_mode=bool(node["ceil_mode"]))


def _max_with_places(node: Node, x: Tensor, pads: Pairs) -> list[Tensor]:
    """The maxima, and their places in the whole flattened tensor, or in one whose last two axes are swapped."""
    kernel, count = list(node["kernel_shape"]), x.ndim - 2
    strides, dilations = (spread(node, name, count) for name in ("strides", "dilations"))
    bordered = padded(x.double(), pads, float("-inf"))
    pool: Any = _MAX_POOLS[x.ndim]
    found, places = pool(bordered, kernel, strides, 0, dilations, ceil_mode=bool(node["ceil_mode"]), return_indices=True)
    numbers = torch.arange(x.numel(), device=x.device).reshape(x.shape)
    if node["storage_order"]:
        swapped = x.transpose(-1, -2)
        numbers = torch.arange(x.numel(), device=x.device).reshape(swapped.shape).transpose(-1, -2)
    sources = F.pad(numbers, list(itertools.chain(*reversed(pads)))).flatten(2)
    return [found.to(x.dtype), torch.gather(sources, 2, places.flatten(2)).reshape(places.shape)]


def _max_of_integers(node: Node, x: Tensor) -> Tensor:
    found: Tensor = max_pool(node, x.double())
    return found.to(x.dtype)


@operator("AveragePool")
def average_pool(node: Node, x: Tensor) -> Value:
    kernel, count = list(node["kernel_shape"]), x.ndim - 2
    strides, dilations = (spread(node, name, count) for name in ("strides", "dilations"))
    pads, ceil = pads_of(node, x.shape[2:], kernel, strides, dilations), bool(node["ceil_mode"])
    pool: Any = _AVERAGE_POOLS[x.ndim]
    includes = bool(node["count_include_pad"])
    plain = all(dilation == 1 for dilation in dilations)
    if plain and is_even(pads) and all(2 * before <= side for (before, _), side in zip(pads, kernel, strict=True)):
        return pool(x, kernel, strides, [before for before, _ in pads], ceil_mode=ceil, count_include_pad=includes)
    if ceil:
        return _average_with_ceiling(node, x, pads)
    # Divide sums by counts: positions of the map count, and with count_include_pad those of the padding, too.
    window = torch.ones(1, 1, *kernel, dtype=x.dtype, device=x.device)
    convolve: Any = _CONVOLUTIONS[x.ndim]

    def summed(part: Tensor) -> Value:
        found = convolve(part.flatten(0, 1).unsqueeze(1), window, None, strides, 0, dilations)
        return found.reshape(*part.shape[:2], *found.shape[2:])

    if includes:
        return summed(padded(x, pads)) / math.prod(kernel)
    return summed(padded(x, pads)) / summed(padded(torch.ones_like(x[:1, :1]), pads))


def _average_with_ceiling(node: Node, x: Tensor, pads: Pairs) -> Tensor:
    """Sums over windows that may reach beyond the padding, divided by the positions of the map, or of it and its padding."""
    kernel, count = list(node["kernel_shape"]), x.ndim - 2
    strides, dilations = (spread(node, name, count) for name in ("strides", "dilations"))
    more = []
    for axis, (before, after) in enumerate(pads):
        reach, total = (kernel[axis] - 1) * dilations[axis] + 1, x.shape[axis + 2] + before + after
        steps = -(-(total - reach) // strides[axis])
        steps -= steps * strides[axis] >= x.shape[axis + 2] + before  # no window begins behind the map
        more.append((before, after + max(steps * strides[axis] + reach - total, 0)))
    window = torch.ones(1, 1, *kernel, dtype=x.dtype, device=x.device)
    convolve: Any = _CONVOLUTIONS[x.ndim]
    beyond = [(0, wide - narrow) for (_, wide), (_, narrow) in zip(more, pads, strict=True)]
    ones = torch.ones_like(x[:1, :1])
    counted = padded(padded(ones, pads, 1.0), beyond) if node["count_include_pad"] else padded(ones, more)
    sums = convolve(padded(x, more).flatten(0, 1).unsqueeze(1), window, None, strides, 0, dilations)
    means: Tensor = sums.reshape(*x.shape[:2], *sums.shape[2:]) / convolve(counted, window, None, strides, 0, dilations)
    return means


@operator("LpPool")
def lp_pool(node: Node, x: Tensor) -> Value:
    power, kernel, count = float(node["p"]), list(node["kernel_shape"]), x.ndim - 2
    strides, dilations = (spread(node, name, count) for name in ("strides", "dilations"))
    if node["ceil_mode"]:
        raise node.refuse("ceil_mode")
    pads = pads_of(node, x.shape[2:], kernel, strides, dilations)
    convolve: Any = _CONVOLUTIONS[x.ndim]
    window = torch.ones(x.shape[1], 1, *kernel, dtype=x.dtype, device=x.device)
    powers = padded(x.abs() ** power, pads)
    return convolve(powers, window, None, strides, 0, dilations, x.shape[1]) ** (1 / power)


@operator("GridSample")
def grid_sample(node: Node, x: Tensor, grid: Tensor) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(node["mode"], node["mode"])
    return F.grid_sample(x, grid, mode, node["padding_mode"], bool(node["align_corners"]))


@operator("GlobalAveragePool")
def global_average(_node: Node, x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max(_node: Node, x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalLpPool")
def global_lp(node: Node, x: Tensor) -> Tensor:
    power = float(node["p"])
    return (x.abs() ** power).sum(tuple(range(2, x.ndim)), keepdim=True) ** (1 / power)


@operator("BatchNormalization")
def batch_norm(node: Node, x: Tensor, *numbers: Tensor) -> Tensor:
    scale, bias, mean, variance = numbers
    if node["training_mode"]:
        raise node.refuse("training_mode")
    return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=node["epsilon"])


@operator("InstanceNormalization")
def instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=node["epsilon"])


@operator("GroupNormalization")
def group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node["num_groups"]
    if scale.shape[0] != x.shape[1]:  # operator set 18 has one scale for each group
        scale, bias = (part.repeat_interleave(x.shape[1] // groups) for part in (scale, bias))
    return F.group_norm(x, groups, scale, bias, node["epsilon"])
