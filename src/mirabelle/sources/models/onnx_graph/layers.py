"""PyTorch layers for ONNX nodes with constant weights, so that all compression steps find the layers they know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from mirabelle.sources.models.onnx_graph.nodes import Node
from mirabelle.sources.models.onnx_graph.spatial import Pairs, is_even, padded, pads_of, spread

Weights: TypeAlias = Sequence[Tensor | None]
_CONVOLUTIONS: dict[int, Any] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {3: nn.ConvTranspose1d, 4: nn.ConvTranspose2d, 5: nn.ConvTranspose3d}
_NORMS: dict[int, Any] = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


class Bordered(nn.Module):
    """A convolution with asymmetric padding, or with padding that depends on the input size.

    Args:
        node: the ONNX node, which defines the padding.
        layer: the convolution, without padding.
    """

    def __init__(self, node: Node, layer: Any) -> None:
        super().__init__()
        self._node = node
        self._geometry = [list(part) for part in (layer.kernel_size, layer.stride, layer.dilation)]
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(padded(x, pads_of(self._node, x.shape[2:], *self._geometry)))
        return found


def _conv(node: Node, weights: Weights) -> Any:
    weight, bias = _two(weights)
    count = weight.ndim - 2
    strides, dilations = (spread(node, name, count) for name in ("strides", "dilations"))
    pads = _fixed_pads(node, list(weight.shape[2:]), strides, dilations)
    even = pads is not None and is_even(pads)
    group = node["group"]
    layer = _CONVOLUTIONS[weight.ndim](
        weight.shape[1] * group,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=tuple(strides),
        padding=[before for before, _ in pads] if pads is not None and even else 0,
        dilation=tuple(dilations),
        groups=group,
        bias=bias is not None,
    )
    _filled(layer, weight, bias)
    return layer if even else Bordered(node, layer)


def _fixed_pads(node: Node, kernel: list[int], strides: list[int], dilations: list[int]) -> Pairs | None:
    """The padding, if it does not depend on the input size; else None."""
    if (node["auto_pad"] or "NOTSET") in ("NOTSET", "VALID") or all(stride == 1 for stride in strides):
        return pads_of(node, [1 << 20] * len(kernel), kernel, strides, dilations)
    return None


def _conv_transpose(node: Node, weights: Weights) -> Any:
    weight, bias = _two(weights)
    count = weight.ndim - 2
    strides, dilations = (spread(node, name, count) for name in ("strides", "dilations"))
    if node["output_shape"] or (node["auto_pad"] or "NOTSET") not in ("NOTSET", "VALID"):
        return None
    pads = pads_of(node, [0] * count, list(weight.shape[2:]), strides, dilations)
    if not is_even(pads):
        return None
    layer = _TRANSPOSED[weight.ndim](
        weight.shape[0],
        weight.shape[1] * node["group"],
        tuple(weight.shape[2:]),
        stride=tuple(strides),
        padding=[before for before, _ in pads],
        output_padding=list(node["output_padding"] or [0] * count),
        groups=node["group"],
        bias=bias is not None,
        dilation=tuple(dilations),
    )
    return _filled(layer, weight, bias)


def _linear(weight: Tensor, bias: Tensor | None) -> Any:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    return _filled(layer, weight, bias)


def _gemm(node: Node, weights: Weights) -> Any:
    weight, bias = _two(weights)
    if node["transA"] or node["alpha"] != 1.0 or (bias is not None and (node["beta"] != 1.0 or bias.ndim > 1)):
        return None
    weight = weight if node["transB"] else weight.T
    if bias is not None and bias.numel() == 1:
        bias = bias.reshape(1).expand(weight.shape[0])
    return _linear(weight, bias)


def _mat_mul(_node: Node, weights: Weights) -> Any:
    weight, bias = _two(weights)
    return _linear(weight.T, bias) if weight.ndim == 2 else None  # noqa: PLR2004


def _batch_norm(node: Node, weights: Weights, rank: int) -> Any:
    scale, bias, mean, variance = weights
    if node["training_mode"] or any(part is None for part in weights) or rank not in _NORMS:
        return None
    norm = _NORMS[rank](len(scale), eps=node["epsilon"], momentum=1 - node["momentum"])  # type: ignore[arg-type]
    _filled(norm, scale, bias)  # type: ignore[arg-type]
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    return norm


def _layer_norm(node: Node, weights: Weights) -> Any:
    scale, bias = _two(weights)
    if len([name for name in node.outputs if name]) > 1 or node["axis"] != -1 or scale.ndim != 1:
        return None
    norm = nn.LayerNorm(tuple(scale.shape), eps=node["epsilon"], bias=bias is not None)
    return _filled(norm, scale, bias)


MADE: dict[str, Callable[[Node, Weights], Any]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _mat_mul,
    "LayerNormalization": _layer_norm,
}


def module_of(node: Node, weights: Weights, rank: int | None) -> nn.Module | None:
    """The PyTorch layer that computes a node with constant weights; None if PyTorch has no such layer.

    Args:
        node: of a kind in `MADE`, or a BatchNormalization.
        weights: the constant inputs, which are all inputs except the first.
        rank: number of dimensions of the first input, if known.
    """
    if not weights or weights[0] is None or not weights[0].is_floating_point():
        return None
    with torch.no_grad():
        normalizes = node.kind == "BatchNormalization"
        made: nn.Module | None = _batch_norm(node, weights, rank or 0) if normalizes else MADE[node.kind](node, weights)
        return made


def _two(weights: Weights) -> tuple[Tensor, Tensor | None]:
    weight = weights[0]
    assert weight is not None, "checked by module_of"
    return weight, weights[1] if len(weights) > 1 else None


def _filled(layer: Any, weight: Tensor, bias: Tensor | None) -> Any:
    """The layer in evaluation mode, after copying these weights into it."""
    layer.weight.copy_(weight.float())
    if bias is not None:
        layer.bias.copy_(bias.float())
    return layer.eval()
