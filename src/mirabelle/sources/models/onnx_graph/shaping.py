"""ONNX operators that move elements, or read and create shapes."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mirabelle.sources.models.onnx_graph.nodes import Node, operator
from mirabelle.sources.models.onnx_graph.values import Value, integers, integers_of, is_integers, kind_of, tensor_of

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def axes_of(node: Node, axes: Value) -> tuple[int, ...] | None:
    """The axes of an operator, from an input or, in older operator sets, from an attribute."""
    found = node["axes"] if axes is None else integers_of(axes)
    return None if found is None else tuple(int(axis) for axis in found)


@operator("Constant")
def constant(node: Node) -> Any:
    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        if (found := node[name]) is not None:
            kind = {"value_float": torch.float32, "value_floats": torch.float32}.get(name, torch.int64)
            return found if isinstance(found, Tensor) else torch.tensor(found, dtype=kind)
    raise node.refuse("text or sparse values")


@operator("Shape")
def shape(node: Node, x: Value) -> Value:
    return integers(list(x.shape)[node["start"] or 0 : node["end"]])


@operator("Size")
def size(_node: Node, x: Value) -> Value:
    return integers(x.numel() if isinstance(x, Tensor) else x.size)


@operator("Reshape")
def reshape(node: Node, x: Value, target: Value = None) -> Value:
    x, sizes = tensor_of(x), list(node["shape"] if target is None else integers_of(target))
    if not node["allowzero"]:
        sizes = [x.shape[axis] if isinstance(length, int) and length == 0 else length for axis, length in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def flatten(node: Node, x: Tensor) -> Tensor:
    axis = node["axis"] + x.ndim if node["axis"] < 0 else node["axis"]
    if axis == 0:
        return x.reshape(1, -1)
    if axis == 1:
        return x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operator("Transpose")
def transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node["perm"] or tuple(reversed(range(x.ndim))))


@operator("Squeeze")
def squeeze(node: Node, x: Tensor, axes: Value = None) -> Tensor:
    found = axes_of(node, axes)
    return x.squeeze(tuple(axis for axis in range(x.ndim) if x.shape[axis] == 1) if found is None else found)


@operator("Unsqueeze")
def unsqueeze(node: Node, x: Value, axes: Value = None) -> Value:
    x, found = tensor_of(x), axes_of(node, axes) or ()
    rank = x.ndim + len(found)
    for axis in sorted(axis % rank for axis in found):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def concat(node: Node, *parts: Value) -> Tensor:
    like = next((part for part in parts if isinstance(part, Tensor)), None)
    return torch.cat([tensor_of(part, like) for part in parts], node["axis"])


@operator("Split")
def split(node: Node, x: Tensor, sizes: Value = None) -> list[Tensor]:
    axis, found = node["axis"] or 0, node["split"] if sizes is None else integers_of(sizes)
    if found is None:
        chunk = -(-x.shape[axis] // (node["num_outputs"] or len(node.outputs)))
        return list(torch.split(x, chunk, axis))
    return list(torch.split(x, list(found), axis))


@operator("Slice")
def slice_(node: Node, x: Tensor, *bounds: Value) -> Tensor:
    starts, ends, axes, steps = (*bounds, None, None, None, None)[:4]
    begins, stops = (
        integers_of(given) if given is not None else node[name] for name, given in (("starts", starts), ("ends", ends))
    )
    where, strides = axes_of(node, axes) or range(len(begins)), integers_of(steps) if steps is not None else [1] * len(begins)
    for axis, begin, stop, stride in zip(where, begins, stops, strides, strict=True):
        if stride > 0:
            index: list[Any] = [slice(None)] * x.ndim
            index[axis] = slice(begin, stop, stride)
            x = x[tuple(index)]
        else:
            x = x.index_select(
                axis, torch.arange(x.shape[axis], device=x.device)[_backwards(begin, stop, stride, x.shape[axis])]
            )
    return x


def _backwards(begin: int, stop: int, stride: int, length: int) -> list[int]:
    """The indices of a slice with a negative step; if the end is before the first element, that is included."""
    return list(range(length))[slice(begin, None if stop < -length else stop, stride)]


@operator("Gather")
def gather(node: Node, x: Value, index: Value) -> Value:
    axis = node["axis"] or 0
    if isinstance(x, Tensor) and is_integers(index) and index.ndim == 0:
        return x.select(axis, index.item())
    x = tensor_of(x)
    index = tensor_of(index, x).long()
    index = torch.where(index < 0, index + x.shape[axis], index)
    if axis == 0 and x.ndim == 2 and x.is_floating_point():  # noqa: PLR2004 (a table of embeddings)
        return F.embedding(index, x)
    found = x.index_select(axis, index.flatten())
    return found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis % x.ndim + 1 :])


@operator("GatherElements")
def gather_elements(node: Node, x: Tensor, index: Value) -> Tensor:
    axis, found = node["axis"], tensor_of(index)
    return torch.gather(x, axis, torch.where(found < 0, found + x.shape[axis], found))


@operator("GatherND")
def gather_nd(node: Node, x: Value, index: Value) -> Value:
    x, found, batch = tensor_of(x), tensor_of(index), node["batch_dims"] or 0
    lengths = torch.tensor(x.shape[batch : batch + found.shape[-1]], device=found.device)
    found = torch.where(found < 0, found + lengths, found)
    before = [
        torch.arange(x.shape[axis], device=found.device).reshape([-1 if axis == k else 1 for k in range(found.ndim - 1)])
        for axis in range(batch)
    ]
    return x[(*before, *found.unbind(-1))]


@operator("ScatterElements", "Scatter")
def scatter_elements(node: Node, x: Tensor, index: Value, updates: Tensor) -> Tensor:
    axis, found = node["axis"], tensor_of(index)
    found = torch.where(found < 0, found + x.shape[axis], found)
    how = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}.get(node["reduction"] or "none")
    if how is None:
        return torch.scatter(x, axis, found, updates)
    return torch.scatter_reduce(x, axis, found, updates, how, include_self=True)


@operator("ScatterND")
def scatter_nd(node: Node, x: Tensor, index: Value, updates: Tensor) -> Tensor:
    found, how = tensor_of(index), {"mul": "prod", "max": "amax", "min": "amin"}.get(node["reduction"] or "none")
    lengths = x.shape[: found.shape[-1]]
    found = torch.where(found < 0, found + torch.tensor(lengths, device=found.device), found)
    if how is None:
        return x.index_put(found.unbind(-1), tensor_of(updates, x), accumulate=node["reduction"] == "add")
    rows = x.reshape(math.prod(lengths), -1)
    strides = [math.prod(lengths[axis + 1 :]) for axis in range(len(lengths))]
    place = (found * torch.tensor(strides, device=found.device)).sum(-1).reshape(-1, 1).expand(-1, rows.shape[1])
    return rows.scatter_reduce(0, place, updates.reshape(place.shape), how, include_self=True).reshape(x.shape)


@operator("Expand")
def expand(_node: Node, x: Value, target: Value) -> Value:
    x, sizes = tensor_of(x), list(integers_of(target))
    lengths = [1] * (len(sizes) - x.ndim) + list(x.shape)
    sizes = [1] * (len(lengths) - len(sizes)) + sizes
    free = [
        length if isinstance(wanted, int) and wanted == 1 else wanted for length, wanted in zip(lengths, sizes, strict=True)
    ]
    return x.expand(free)


@operator("Tile")
def tile(_node: Node, x: Value, repeats: Value) -> Any:
    return tensor_of(x).repeat(integers_of(repeats))


@operator("ConstantOfShape")
def constant_of_shape(node: Node, sizes: Value) -> Tensor:
    value = node["value"] if node["value"] is not None else torch.zeros(1)
    return torch.full(integers_of(sizes), value.item(), dtype=value.dtype)


@operator("Range")
def range_(_node: Node, start: Value, limit: Value, delta: Value) -> Tensor:
    bounds = [part.item() for part in (start, limit, delta)]
    return torch.arange(*bounds, dtype=kind_of(start))


@operator("EyeLike")
def eye_like(node: Node, x: Tensor) -> Tensor:
    from mirabelle.sources.models.onnx_graph.nodes import type_of

    kind = x.dtype if node["dtype"] is None else type_of(node["dtype"], node)
    rows, columns = (torch.arange(length, device=x.device) for length in x.shape)
    return (columns[None] - rows[:, None] == (node["k"] or 0)).to(kind)


@operator("Trilu")
def triangle(node: Node, x: Tensor, diagonal: Value = None) -> Tensor:
    k = 0 if diagonal is None else integers_of(diagonal)[0]
    return torch.triu(x, k) if node["upper"] else torch.tril(x, k)


@operator("Pad")
def pad(node: Node, x: Tensor, pads: Value = None, value: Value = None, axes: Value = None) -> Tensor:
    widths = integers_of(pads) if pads is not None else node["pads"]
    fill = node["value"] if value is None else value.item()
    where = [axis % x.ndim for axis in (axes_of(node, axes) or range(len(widths) // 2))]
    mode = node["mode"] or "constant"
    pairs = {axis: (widths[k], widths[k + len(where)]) for k, axis in enumerate(where)}
    if mode == "constant":
        flat = [side for axis in reversed(range(x.ndim)) for side in pairs.get(axis, (0, 0))]
        return F.pad(x, flat, value=fill or 0)
    if any(side < 0 for pair in pairs.values() for side in pair):
        raise node.refuse(f"negative widths in mode {mode}")
    for axis, (before, after) in pairs.items():  # these modes of F.pad work on the last axes only
        if before or after:
            moved = x.movedim(axis, -1)
            rows = moved.reshape(1, -1, moved.shape[-1])
            padded = F.pad(rows.to(torch.float64) if not x.is_floating_point() else rows, (before, after), _PAD_MODES[mode])
            x = padded.to(x.dtype).reshape(*moved.shape[:-1], padded.shape[-1]).movedim(-1, axis)
    return x


@operator("CenterCropPad")
def centered(node: Node, x: Tensor, target: Value) -> Tensor:
    """Cut or padded with zeros on both sides of every axis; the odd element is cut or added at the end."""
    for axis, wanted in zip(axes_of(node, None) or range(x.ndim), integers_of(target), strict=True):
        size = x.shape[axis]
        if wanted < size:
            x = x.narrow(axis, (size - wanted) // 2, wanted)
        elif wanted > size:
            before = (wanted - size) // 2
            sides = (0, 0) * (x.ndim - 1 - axis % x.ndim) + (before, wanted - size - before)
            x = F.pad(x, sides)
    return x


@operator("SpaceToDepth")
def space_to_depth(node: Node, x: Tensor) -> Tensor:
    side, (batch, channels, height, width) = node["blocksize"], x.shape
    if node["mode"] == "CRD":
        return F.pixel_unshuffle(x, side)
    blocks = x.reshape(batch, channels, height // side, side, width // side, side).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(batch, channels * side * side, height // side, width // side)


@operator("DepthToSpace")
def depth_to_space(node: Node, x: Tensor) -> Tensor:
    side, (batch, channels, height, width) = node["blocksize"], x.shape
    if node["mode"] == "CRD":
        return F.pixel_shuffle(x, side)
    blocks = x.reshape(batch, side, side, channels // side**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(batch, channels // side**2, height * side, width * side)


@operator("OneHot")
def one_hot(node: Node, index: Value, depth: Value, values: Tensor) -> Tensor:
    count = int(depth.item()) if isinstance(depth, Tensor) else integers_of(depth)[0]
    found, axis = tensor_of(index).long(), node["axis"]
    places = torch.arange(count, device=found.device)
    hot = torch.where(found < 0, found + count, found).unsqueeze(axis)
    shape = [1] * hot.ndim
    shape[axis] = count
    off, on = tensor_of(values).unbind()
    return torch.where(hot == places.reshape(shape), on, off)


@operator("ReverseSequence")
def reverse_sequence(node: Node, x: Tensor, lengths: Value) -> Tensor:
    time, batch = node["time_axis"], node["batch_axis"]
    rows = x.movedim((batch, time), (0, 1))
    steps, ends = torch.arange(rows.shape[1], device=x.device)[None], tensor_of(lengths, x)[:, None]
    index = torch.where(steps < ends, ends - 1 - steps, steps)
    index = index.reshape(*index.shape, *[1] * (rows.ndim - 2)).expand_as(rows)
    return torch.gather(rows, 1, index).movedim((0, 1), (batch, time))
