"""ONNX operators whose number of results depends on values: selection, unique elements, non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor

from mirabelle.sources.models.onnx_graph.nodes import Node, operator
from mirabelle.sources.models.onnx_graph.values import Value, integers_of, tensor_of


@operator("NonZero")
def non_zero(_node: Node, x: Value) -> Tensor:
    return torch.stack(torch.nonzero(tensor_of(x), as_tuple=True))


@operator("Compress")
def compress(node: Node, x: Tensor, condition: Value) -> Tensor:
    """The elements along an axis, or of the flattened tensor, where the condition holds; it may be shorter."""
    node.need_values("the number of results")
    axis = node["axis"]
    flat = x.flatten() if axis is None else x
    return flat.index_select(axis or 0, torch.nonzero(tensor_of(condition))[:, 0])


@operator("Unique")
def unique(node: Node, x: Tensor) -> list[Tensor]:
    """The different elements (or slices along an axis), the place of the first of each, what each was, and their counts."""
    node.need_values("the number of results")
    axis = node["axis"]
    x = x.flatten() if axis is None else x
    axis = axis or 0
    found, inverse, counts = torch.unique(x, sorted=True, return_inverse=True, return_counts=True, dim=axis)
    places = torch.arange(len(inverse), device=x.device)
    first = torch.full_like(counts, len(inverse)).scatter_reduce(0, inverse, places, "amin")
    if not node["sorted"]:
        order = torch.argsort(first)
        found, first, counts = found.index_select(axis, order), first[order], counts[order]
        inverse = torch.argsort(order)[inverse]
    return [found, first, inverse, counts]


@operator("NonMaxSuppression")
def suppress(node: Node, boxes: Tensor, scores: Tensor, *limits: Value) -> Tensor:
    """(image, class, box) of the boxes with the highest scores that do not overlap by more than a share of their union."""
    node.need_values("the number of boxes that are kept")
    most, overlap, least = (*limits, None, None, None)[:3]
    count = 0 if most is None else integers_of(most)[0]
    threshold = 0.0 if overlap is None else float(tensor_of(overlap))
    kept: list[tuple[int, int, int]] = []
    for image, corners in enumerate(_corners(node, boxes)):
        for kind, row in enumerate(scores[image]):
            order = torch.argsort(row, descending=True, stable=True)
            order = order if least is None else order[row[order] > tensor_of(least)]
            kept.extend((image, kind, box) for box in _apart(corners, order, count, threshold))
    return torch.tensor(kept, dtype=torch.int64).reshape(-1, 3)


def _corners(node: Node, boxes: Tensor) -> Tensor:
    """(images, boxes, 4): lower and upper ends along both axes."""
    if node["center_point_box"]:
        center, half = boxes[..., :2], boxes[..., 2:] / 2
        return torch.cat([center - half, center + half], -1)
    return torch.cat([torch.minimum(boxes[..., :2], boxes[..., 2:]), torch.maximum(boxes[..., :2], boxes[..., 2:])], -1)


def _apart(corners: Tensor, order: Tensor, count: int, threshold: float) -> list[int]:
    """Greedily the first `count` boxes in this order that overlap with none taken before by more than the threshold."""
    taken: list[int] = []
    areas = (corners[:, 2:] - corners[:, :2]).prod(1)
    while len(order) and len(taken) < count:
        first, order = order[0], order[1:]
        taken.append(int(first))
        low, high = (
            torch.maximum(corners[first, :2], corners[order, :2]),
            torch.minimum(corners[first, 2:], corners[order, 2:]),
        )
        common = (high - low).clamp(min=0.0).prod(1)
        union = areas[first] + areas[order] - common
        order = order[~((common > 0) & (union > 0) & (common / union > threshold))]
    return taken
