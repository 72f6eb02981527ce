"""ONNX operators that sample feature maps at computed places: regions of interest, deformed convolutions, unpooling."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mirabelle.sources.models.onnx_graph.nodes import Node, operator
from mirabelle.sources.models.onnx_graph.spatial import Pairs, pads_of, spread
from mirabelle.sources.models.onnx_graph.values import Value, integers_of, tensor_of


@operator("RoiAlign")
def align_regions(node: Node, x: Tensor, regions: Tensor, images: Value) -> Any:
    """The mean (or the standard's maximum of weighted corners) of bilinear samples in every cell of every region."""
    shift = 0.5 if (node["coordinate_transformation_mode"] or "output_half_pixel") == "half_pixel" else 0.0
    if node.version < 16:  # noqa: PLR2004 (the attribute is new in this operator set)
        shift = 0.0
    begin, end = (part * node["spatial_scale"] - shift for part in (regions[:, :2], regions[:, 2:]))
    extent: Tensor = end - begin if shift else (end - begin).clamp(min=1.0)
    cells = (node["output_width"], node["output_height"])
    steps: Tensor = extent / torch.tensor(cells, dtype=extent.dtype, device=extent.device)
    index = tensor_of(images).long()
    if node["sampling_ratio"] > 0:
        return _sampled(node, x, (index, begin, steps), (node["sampling_ratio"],) * 2)
    node.need_values("the number of samples in each region")
    counts = steps.ceil().long().tolist()
    found = [
        _sampled(node, x, (index[k : k + 1], begin[k : k + 1], steps[k : k + 1]), (across, down))
        for k, (across, down) in enumerate(counts)
    ]
    return torch.cat(found) if found else x.new_zeros(0, x.shape[1], cells[1], cells[0])


def _sampled(node: Node, x: Tensor, regions: tuple[Tensor, Tensor, Tensor], counts: tuple[int, int]) -> Any:
    """(regions, channels, cells down, cells across), of `counts` samples across and down in every cell.

    Regions are given by their images, their beginnings, and the sizes of their cells.
    """
    index, begin, steps = regions
    lows, highs, weights = [], [], []
    outside = []
    for axis, (cells, count) in enumerate(zip((node["output_width"], node["output_height"]), counts, strict=True)):
        size = x.shape[3 - axis]
        places = torch.arange(cells, device=x.device)[:, None] + (torch.arange(count, device=x.device) + 0.5) / max(count, 1)
        along = begin[:, axis, None] + steps[:, axis, None] * places.flatten().to(x.dtype)
        outside.append((along < -1.0) | (along > size))
        along = along.clamp(min=0.0)
        low = along.long().clamp(max=size - 1)
        lows.append(low)
        highs.append((low + 1).clamp(max=size - 1))
        weights.append(torch.where(low >= size - 1, torch.zeros_like(along), along - low))
    corners = []
    for down, near_down in ((lows[1], True), (highs[1], False)):
        for across, near_across in ((lows[0], True), (highs[0], False)):
            found = x[index[:, None, None], :, down[:, :, None], across[:, None, :]]
            tall = 1 - weights[1] if near_down else weights[1]
            wide = 1 - weights[0] if near_across else weights[0]
            weight = (tall[:, :, None] * wide[:, None, :]).masked_fill(outside[1][:, :, None] | outside[0][:, None, :], 0.0)
            corners.append(found * weight[..., None])
    values = torch.stack(corners)
    values = values.sum(0) if node["mode"] == "avg" else values.amax(0)
    cells = (node["output_height"], counts[1], node["output_width"], counts[0])
    parts = values.reshape(len(begin), *cells, x.shape[1])
    pooled = parts.mean((2, 4)) if node["mode"] == "avg" else parts.amax((2, 4))
    return pooled.permute(0, 3, 1, 2)


@operator("MaxRoiPool")
def pool_regions(node: Node, x: Tensor, regions: Tensor) -> Tensor:
    """The maximum in every cell of every region (image, left, top, right, bottom), whose corners are rounded to pixels."""
    corners = _rounded(regions[:, 1:] * node["spatial_scale"])
    maps = x[regions[:, 0].long()]
    for axis, cells, first, last in ((3, node["pooled_shape"][1], 0, 2), (2, node["pooled_shape"][0], 1, 3)):
        begin, length = corners[:, first], (corners[:, last] - corners[:, first] + 1).clamp(min=1)
        steps, size = torch.arange(cells + 1, device=x.device) * (length / cells)[:, None], x.shape[axis]
        low = (steps[:, :-1].floor() + begin[:, None]).clamp(0, size)
        high = (steps[:, 1:].ceil() + begin[:, None]).clamp(0, size)
        pixels = torch.arange(size, device=x.device)
        within = (pixels >= low[..., None]) & (pixels < high[..., None])
        if axis == 3:  # noqa: PLR2004 (columns; rows after them)
            maps = _largest(maps.unsqueeze(3), within[:, None, None], -1)
        else:
            maps = _largest(maps.movedim(2, -1).unsqueeze(2), within[:, None, :, None], -1)
    return torch.where(maps == -math.inf, torch.zeros_like(maps), maps)


def _rounded(x: Tensor) -> Tensor:
    """Rounded half away from zero, as in C."""
    return torch.sign(x) * torch.floor(x.abs() + 0.5)


def _largest(x: Tensor, within: Tensor, axis: int) -> Tensor:
    return torch.where(within, x, torch.full((), -math.inf, dtype=x.dtype, device=x.device)).amax(axis)


@operator("DeformConv")
def deformed_convolution(node: Node, x: Tensor, weight: Tensor, offset: Tensor, *rest: Tensor | None) -> Tensor:
    """A convolution whose kernel positions are moved by offsets; samples are bilinear, and 0 outside."""
    if x.ndim != 4:  # noqa: PLR2004
        raise node.refuse(f"{x.ndim - 2} spatial axes")
    bias, mask = (*rest, None, None)[:2]
    kernel, groups = list(weight.shape[2:]), node["offset_group"]
    strides, dilations = spread(node, "strides", 2), spread(node, "dilations", 2)
    pads = pads_of(node, x.shape[2:], kernel, strides, dilations)
    rows, columns = offset.shape[2:]
    offset = offset.reshape(x.shape[0], groups, *kernel, 2, rows, columns)
    places = []
    for axis, (count, length) in enumerate(((kernel[0], rows), (kernel[1], columns))):
        within = (torch.arange(count, device=x.device) * dilations[axis]).reshape(
            [-1 if k == axis else 1 for k in range(2)] + [1, 1]
        )
        starts = (torch.arange(length, device=x.device) * strides[axis] - pads[axis][0]).reshape(
            [1, 1] + [-1 if k == axis else 1 for k in range(2)]
        )
        places.append(offset[:, :, :, :, axis] + (within + starts).to(x.dtype))
    maps = x.reshape(x.shape[0] * groups, x.shape[1] // groups, *x.shape[2:])
    spots = [part.reshape(x.shape[0] * groups, -1) for part in places]
    found = _bilinear(maps, *spots).reshape(x.shape[0], groups, -1, math.prod(kernel), rows, columns)
    if mask is not None:
        found = found * mask.reshape(x.shape[0], groups, 1, math.prod(kernel), rows, columns)
    flat = weight.reshape(weight.shape[0], -1, 1, 1)
    return F.conv2d(found.reshape(x.shape[0], -1, rows, columns), flat, bias, groups=node["group"])


def _bilinear(maps: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Bilinear samples (maps, channels, places) at these rows and columns; outside a map there are zeros."""
    height, width = maps.shape[2:]
    flat, total = maps.flatten(2), None
    top, left = down.floor(), across.floor()
    for row, tall in ((top, 1 - (down - top)), (top + 1, down - top)):
        for column, wide in ((left, 1 - (across - left)), (left + 1, across - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = row.long().clamp(0, height - 1) * width + column.long().clamp(0, width - 1)
            part = torch.gather(flat, 2, index.unsqueeze(1).expand(-1, flat.shape[1], -1))
            part = part * torch.where(inside, tall * wide, torch.zeros_like(wide)).unsqueeze(1)
            total = part if total is None else total + part
    assert total is not None, "there are four corners"
    return total


@operator("MaxUnpool")
def unpool(node: Node, x: Tensor, index: Tensor, target: Value = None) -> Tensor:
    """The values at the places of the maxima, zeros elsewhere; the flat places are those of the whole tensor."""
    kernel, count = list(node["kernel_shape"]), x.ndim - 2
    strides, pads = spread(node, "strides", count), node["pads"] or [0] * (2 * count)
    sizes = [
        (length - 1) * stride - pads[k] - pads[k + count] + side
        for k, (length, stride, side) in enumerate(zip(x.shape[2:], strides, kernel, strict=True))
    ]
    wanted = sizes if target is None else list(integers_of(target))[2:]
    places = tensor_of(index).long().flatten()
    total = x.new_zeros(x.shape[0] * x.shape[1] * math.prod(sizes)).scatter(0, places, x.flatten())
    found = total.reshape(*x.shape[:2], *sizes)
    return F.pad(found, [side for k in reversed(range(count)) for side in (0, wanted[k] - sizes[k])])


@operator("Col2Im")
def folded(node: Node, x: Tensor, image: Value, block: Value) -> Tensor:
    """Sums of overlapping blocks (batch, channels · block, blocks), for any number of spatial axes."""
    sizes, kernel = list(integers_of(image)), list(integers_of(block))
    count = len(sizes)
    strides, dilations, pads = spread(node, "strides", count), spread(node, "dilations", count), _sides(node, count)
    padded = [size + before + after for size, (before, after) in zip(sizes, pads, strict=True)]
    place: Any = torch.zeros((), dtype=torch.int64, device=x.device)
    for axis in range(count):
        within = torch.arange(kernel[axis], device=x.device) * dilations[axis]
        starts = torch.arange(0, padded[axis] - dilations[axis] * (kernel[axis] - 1), strides[axis], device=x.device)
        shape = [1] * (2 * count)
        shape[axis], shape[count + axis] = len(within), len(starts)
        place = place * padded[axis] + (within[:, None] + starts).reshape(shape)
    channels = x.shape[1] // math.prod(kernel)
    rows = x.reshape(x.shape[0] * channels, -1)
    total = rows.new_zeros(rows.shape[0], math.prod(padded)).index_add(1, place.flatten(), rows)
    found = total.reshape(x.shape[0], channels, *padded)
    return F.pad(found, [-side for pair in reversed(pads) for side in pair])


def _sides(node: Node, count: int) -> Pairs:
    pads = node["pads"] or [0] * (2 * count)
    return list(zip(pads[:count], pads[count:], strict=True))


@operator("AffineGrid")
def affine_grid(node: Node, theta: Tensor, size: Value) -> Tensor:
    sizes = [theta.shape[0], *integers_of(size)[1:]]  # the batch of a file may be fixed in the size, too
    return F.affine_grid(theta, sizes, align_corners=bool(node["align_corners"]))
