"""ONNX operators for reductions, sorting, softmax, normalization, and products of two non-constant tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mirabelle.sources.models.onnx_graph.nodes import Node, operator
from mirabelle.sources.models.onnx_graph.shaping import axes_of
from mirabelle.sources.models.onnx_graph.values import Value, integers_of, tensor_of

_LAST_AXIS = 13  # from this operator set on, softmax is over one axis instead of all axes from `axis` on


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:  # noqa: FBT001 (as the others)
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


_REDUCTIONS: dict[str, Callable[[Tensor, tuple[int, ...], bool], Tensor]] = {
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}


@operator(*_REDUCTIONS)
def reduce(node: Node, x: Value, axes: Value = None) -> Value:
    x, found = tensor_of(x), axes_of(node, axes)
    if not found:
        if node["noop_with_empty_axes"]:
            return x
        found = tuple(range(x.ndim))
    if x.numel() == 0 and node.kind in ("ReduceMax", "ReduceMin"):
        return _extreme_of_nothing(node, x, found)
    return _REDUCTIONS[node.kind](x, found, bool(node["keepdims"])).to(x.dtype)


def _extreme_of_nothing(node: Node, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The least number of the type as the largest of none, the largest as the least."""
    gone = {axis % x.ndim for axis in axes}
    sizes = [1 if axis in gone else length for axis, length in enumerate(x.shape) if node["keepdims"] or axis not in gone]
    low = node.kind == "ReduceMax"
    if x.dtype == torch.bool:
        value: float | int = not low
    elif x.is_floating_point():
        value = -math.inf if low else math.inf
    else:
        value = torch.iinfo(x.dtype).min if low else torch.iinfo(x.dtype).max
    return torch.full(sizes, value, dtype=x.dtype, device=x.device)


@operator("ArgMax", "ArgMin")
def extreme(node: Node, x: Tensor) -> Value:
    find = torch.argmax if node.kind == "ArgMax" else torch.argmin
    axis = node["axis"]
    if node["select_last_index"]:
        return x.shape[axis] - 1 - find(x.flip(axis), axis, keepdim=bool(node["keepdims"]))
    return find(x, axis, keepdim=bool(node["keepdims"]))


@operator("Softmax", "LogSoftmax", "Hardmax")
def softmax(node: Node, x: Tensor) -> Tensor:
    if node.version >= _LAST_AXIS:
        return _normalized(node, x, node["axis"])
    rows = x.reshape(*x.shape[:1], -1) if node["axis"] == 1 else x.flatten(node["axis"] % x.ndim)
    return _normalized(node, rows, -1).reshape(x.shape)


def _normalized(node: Node, x: Tensor, axis: int) -> Tensor:
    if node.kind == "Hardmax":
        return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)
    return F.softmax(x, axis) if node.kind == "Softmax" else F.log_softmax(x, axis)


@operator("CumSum")
def cumulated(node: Node, x: Tensor, axis: Value) -> Tensor:
    where = integers_of(axis)[0]
    x = x.flip(where) if node["reverse"] else x
    total = x.cumsum(where, dtype=x.dtype)
    total = total - x if node["exclusive"] else total
    return total.flip(where) if node["reverse"] else total


@operator("CumProd")
def cumulated_product(node: Node, x: Tensor, axis: Value) -> Tensor:
    where = integers_of(axis)[0]
    x = x.flip(where) if node["reverse"] else x
    if node["exclusive"]:
        x = torch.cat([torch.ones_like(x.narrow(where, 0, 1)), x.narrow(where, 0, x.shape[where] - 1)], where)
    total = x.cumprod(where, dtype=x.dtype)
    return total.flip(where) if node["reverse"] else total


@operator("TopK")
def largest(node: Node, x: Tensor, count: Value = None) -> list[Tensor]:
    k = node["k"] if count is None else integers_of(count)[0]
    found = torch.sort(
        x, stable=True, dim=node["axis"], descending=node["largest"] != 0
    )  # among equal elements the first comes first
    return [part.narrow(node["axis"], 0, k) for part in (found.values, found.indices)]


@operator("MatMul")
def multiplied(_node: Node, a: Value, b: Value) -> Tensor:
    return torch.matmul(tensor_of(a), tensor_of(b))


@operator("Gemm")
def gemm(node: Node, a: Tensor, b: Tensor, c: Value = None) -> Value:
    product = node["alpha"] * ((a.T if node["transA"] else a) @ (b.T if node["transB"] else b))
    return product if c is None else product + node["beta"] * tensor_of(c, a)


@operator("Einsum")
def einsum(node: Node, *parts: Tensor) -> Tensor:
    return torch.einsum(node["equation"], *parts)


@operator("LayerNormalization")
def layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Value:
    if len([name for name in node.outputs if name]) > 1:
        axes = tuple(range(node["axis"] % x.ndim, x.ndim))
        mean = x.mean(axes, keepdim=True)
        inverse = torch.rsqrt((x - mean).square().mean(axes, keepdim=True) + node["epsilon"])
        scaled = (x - mean) * inverse * scale
        return [scaled if bias is None else scaled + bias, mean, inverse]
    shape = x.shape[node["axis"] % x.ndim :]
    if scale.shape != shape or (bias is not None and bias.shape != shape):
        plain = F.layer_norm(x, shape, eps=node["epsilon"]) * scale
        return plain if bias is None else plain + bias
    return F.layer_norm(x, shape, scale, bias, node["epsilon"])


@operator("RMSNormalization")
def rms_norm(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    axes = tuple(range(node["axis"] % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + node["epsilon"]) * scale


@operator("LpNormalization")
def lp_norm(node: Node, x: Tensor) -> Tensor:
    return F.normalize(x, p=node["p"], dim=node["axis"])


@operator("MeanVarianceNormalization")
def standardized(node: Node, x: Tensor) -> Tensor:
    centered = x - x.mean(node["axes"], keepdim=True)
    return centered / (centered.square().mean(node["axes"], keepdim=True).sqrt() + 1e-9)


@operator("LRN")
def local_response(node: Node, x: Tensor) -> Value:
    side, alpha = node["size"], node["alpha"]
    squares = F.pad(x.square().unsqueeze(1), (0, 0) * (x.ndim - 2) + ((side - 1) // 2, side // 2))
    total = sum(squares[:, 0].narrow(1, k, x.shape[1]) for k in range(side))
    return x / (node["bias"] + alpha / side * total) ** node["beta"]
