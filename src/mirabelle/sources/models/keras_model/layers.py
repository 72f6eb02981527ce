"""Converters for Keras layers: to PyTorch modules, and back to configs and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.sources.models.keras_model.converting import Array, Converter, Tensors, array_of, tensors_of
from mirabelle.sources.models.keras_model.masks import batch_normalized
from mirabelle.sources.models.keras_model.recurrent import RECURRENT

_CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


class Padded(nn.Module):
    """A convolution with the padding modes of Keras that PyTorch's layers do not have.

    Args:
        layer: the convolution, without padding.
        padding: "same": the output size is ⌈input size / stride⌉; "causal": an output depends only on earlier positions.
    """

    def __init__(self, layer: Any, padding: str) -> None:
        super().__init__()
        self.layer, self._causal = layer, padding == "causal"
        self._axes = list(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, (side, stride, dilation) in zip(x.shape[2:], self._axes, strict=True):
            total = max((-(-size // stride) - 1) * stride + (side - 1) * dilation + 1 - size, 0)
            pads = [(side - 1) * dilation, 0] if self._causal else [total // 2, total - total // 2, *pads]
        found: Tensor = self.layer(F.pad(x, pads) if any(pads) else x)
        return found


class Cropped(nn.Module):
    """A transposed convolution whose output is cropped to the size that Keras gives.

    Args:
        layer: the transposed convolution, without padding.
        crops: number of positions to remove, (before, after), for each spatial axis.
    """

    def __init__(self, layer: nn.Module, crops: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.layer, self._pads = layer, [-side for pair in reversed(crops) for side in pair]

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = F.pad(self.layer(x), self._pads)
        return found


def _named(tensors: Tensors, name: str) -> Tensor | None:
    """A tensor of a layer, which may be inside a `Padded` or a `Cropped`."""
    return tensors.get(name, tensors.get(f"layer.{name}"))


def _with_bias(weight: Tensor, tensors: Tensors) -> list[Array]:
    bias = _named(tensors, "bias")
    return [array_of(weight)] if bias is None else [array_of(weight), array_of(bias)]


def _filled(module: Any, *arrays: Any) -> Any:
    """The module, after copying these tensors into its weight and bias."""
    with torch.no_grad():
        for name, array in zip(("weight", "bias"), arrays, strict=False):
            if array is not None:
                getattr(module, name).copy_(array)
    return module


def _dense(layer: Any) -> nn.Module:
    kernel, *bias = tensors_of(layer)
    made: nn.Module = _filled(nn.Linear(kernel.shape[0], kernel.shape[1], bool(bias)), kernel.T, *bias)
    return made


def _weight_of(tensors: Tensors) -> Tensor:
    found = _named(tensors, "weight")
    assert found is not None, "every converted layer has a weight"
    return found


def _convolution(layer: Any, kernel: Tensor, bias: Tensor | None, groups: int, strides: Sequence[int]) -> nn.Module | None:
    """A PyTorch convolution with a weight in PyTorch's layout, and the padding of the Keras layer."""
    if layer.padding not in ("same", "valid", "causal"):
        return None
    rank = kernel.ndim - 2
    settings: dict[str, Any] = {
        "stride": tuple(strides),
        "dilation": tuple(layer.dilation_rate),
        "groups": groups,
        "bias": bias is not None,
    }
    sides = kernel.shape[2:]
    even = all((side - 1) * dilation % 2 == 0 for side, dilation in zip(sides, settings["dilation"], strict=True))
    plain = all(stride == 1 for stride in settings["stride"]) and even
    if layer.padding == "same" and plain:
        settings["padding"] = [(side - 1) * step // 2 for side, step in zip(sides, settings["dilation"], strict=True)]
    made = _CONVOLUTIONS[rank](kernel.shape[1] * groups, kernel.shape[0], tuple(sides), **settings)
    _filled(made, kernel, bias)
    return made if layer.padding == "valid" or (layer.padding == "same" and plain) else Padded(made, layer.padding)


def _conv(layer: Any) -> nn.Module | None:
    kernel, *bias = tensors_of(layer)
    return _convolution(layer, kernel.movedim((-1, -2), (0, 1)), bias[0] if bias else None, layer.groups, layer.strides)


def _conv_config(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    groups = _named(tensors, "groups")
    return {**config, "filters": len(_weight_of(tensors)), "groups": config["groups"] if groups is None else int(groups)}


def _conv_weights(_config: Mapping[str, Any], tensors: Tensors) -> list[Array]:
    return _with_bias(_weight_of(tensors).movedim((0, 1), (-1, -2)), tensors)


def _transposed(layer: Any) -> nn.Module | None:
    kernel, *bias = tensors_of(layer)
    weight = kernel.movedim((-1, -2), (0, 1))
    if (
        layer.output_padding is not None
        or any(step != 1 for step in layer.dilation_rate)
        or layer.padding not in ("same", "valid")
    ):
        return None
    sides, strides = (weight.shape[2], weight.shape[3]), tuple(layer.strides)
    less = [max(side - stride, 0) if layer.padding == "same" else 0 for side, stride in zip(sides, strides, strict=True)]
    more = [
        max(stride - side, 0) for side, stride in zip(sides, strides, strict=True)
    ]  # positions that the kernel does not reach
    settings: dict[str, Any] = {"stride": strides, "output_padding": more, "bias": bool(bias)}
    made = nn.ConvTranspose2d(weight.shape[0], weight.shape[1], sides, **settings)
    _filled(made, weight, *bias)
    return Cropped(made, [(total // 2, total - total // 2) for total in less]) if any(less) else made


def _depthwise(layer: Any) -> nn.Module | None:
    kernel, *bias = tensors_of(layer)
    channels = kernel.shape[-2]
    weight = kernel.movedim((-2, -1), (0, 1)).flatten(0, 1).unsqueeze(1)
    return _convolution(layer, weight, bias[0] if bias else None, channels, layer.strides)


def _depthwise_config(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    groups = _named(tensors, "groups")
    each = config["depth_multiplier"] if groups is None else len(_weight_of(tensors)) // int(groups)
    return {**config, "depth_multiplier": each}


def _depthwise_kernel(weight: Tensor, each: int) -> Tensor:
    """The depthwise kernel in the layout of Keras: (kernel size…, channels, depth multiplier)."""
    plain = weight.squeeze(1)
    return plain.reshape(-1, each, *plain.shape[1:]).movedim((0, 1), (-2, -1))


def _separable(layer: Any) -> nn.Module | None:
    deep, wide, *bias = tensors_of(layer)
    channels = deep.shape[-2]
    weight = deep.movedim((-2, -1), (0, 1)).flatten(0, 1).unsqueeze(1)
    depthwise = _convolution(layer, weight, None, channels, layer.strides)
    if depthwise is None:
        return None
    point = wide.movedim((-1, -2), (0, 1))
    pointwise = _filled(_CONVOLUTIONS[wide.ndim - 2](point.shape[1], point.shape[0], 1, bias=bool(bias)), point, *bias)
    both = nn.Module()
    both.depthwise, both.pointwise = depthwise, pointwise
    return both


def _separable_config(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    deep = {name.removeprefix("depthwise."): tensor for name, tensor in tensors.items() if name.startswith("depthwise.")}
    return {**_depthwise_config(config, deep), "filters": len(tensors["pointwise.weight"])}


def _separable_weights(config: Mapping[str, Any], tensors: Tensors) -> list[Array]:
    deep = tensors.get("depthwise.weight", tensors.get("depthwise.layer.weight"))
    assert deep is not None, "made by _separable"
    kernel = _depthwise_kernel(deep, config["depth_multiplier"])
    wide = tensors["pointwise.weight"].movedim((0, 1), (-1, -2))
    bias = [array_of(tensors["pointwise.bias"])] if "pointwise.bias" in tensors else []
    return [array_of(kernel), array_of(wide), *bias]


def _rank_of(layer: Any) -> int:
    """The number of dimensions of the layer's input."""
    return len(layer.get_build_config()["input_shape"])


def _batch_norm(layer: Any) -> nn.Module | None:
    rank = _rank_of(layer)
    if rank not in _NORMS or layer.axis not in (-1, rank - 1) or not layer.center or not layer.scale:
        return None
    gamma, beta, mean, variance = tensors_of(layer)
    norm = _filled(_NORMS[rank](len(gamma), eps=layer.epsilon, momentum=1 - layer.momentum), gamma, beta)
    with torch.no_grad():
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
    made: nn.Module = norm
    return made


def _norm_weights(_config: Mapping[str, Any], tensors: Tensors) -> list[Array]:
    return [array_of(tensors[name]) for name in ("weight", "bias", "running_mean", "running_var")]


def _layer_norm(layer: Any) -> nn.Module | None:
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    weights = tensors_of(layer)
    if len(axes) != 1 or not layer.center or not layer.scale or axes[0] not in (-1, _rank_of(layer) - 1):
        return None
    made: nn.Module = _filled(nn.LayerNorm(len(weights[0]), eps=layer.epsilon), *weights)
    return made


def _embedding(layer: Any) -> nn.Module | None:
    (table,) = tensors_of(layer)
    made: nn.Module = _filled(nn.Embedding(*table.shape), table)
    return made


def _apply(_layer: Any, module: Any, x: Tensor) -> Tensor:
    found: Tensor = module(x)
    return found


_CONVOLVE = Converter(_conv, _apply, _conv_config, _conv_weights, spatial=True)
CONVERTERS: dict[str, Converter] = {
    "Dense": Converter(
        _dense,
        _apply,
        lambda config, tensors: {**config, "units": len(tensors["weight"])},
        lambda _, tensors: _with_bias(tensors["weight"].T, tensors),
    ),
    "Conv1D": _CONVOLVE,
    "Conv2D": _CONVOLVE,
    "Conv3D": _CONVOLVE,
    "Conv2DTranspose": Converter(
        _transposed,
        _apply,
        lambda config, tensors: {**config, "filters": _weight_of(tensors).shape[1]},
        _conv_weights,
        spatial=True,
    ),
    "DepthwiseConv2D": Converter(
        _depthwise,
        _apply,
        _depthwise_config,
        lambda config, tensors: _with_bias(_depthwise_kernel(_weight_of(tensors), config["depth_multiplier"]), tensors),
        spatial=True,
    ),
    "SeparableConv2D": Converter(
        _separable,
        lambda _, module, x: module.pointwise(module.depthwise(x)),
        _separable_config,
        _separable_weights,
        spatial=True,
    ),
    "BatchNormalization": Converter(
        _batch_norm,
        lambda _, module, x: batch_normalized(module, x),
        lambda config, _: dict(config),
        _norm_weights,
        spatial=True,
    ),
    "LayerNormalization": Converter(
        _layer_norm,
        _apply,
        lambda config, _: dict(config),
        lambda _, tensors: [array_of(tensors["weight"]), array_of(tensors["bias"])],
    ),
    "Embedding": Converter(
        _embedding,
        _apply,
        lambda config, tensors: {**config, "input_dim": len(tensors["weight"]), "output_dim": tensors["weight"].shape[1]},
        lambda _, tensors: [array_of(tensors["weight"])],
    ),
    **RECURRENT,
}


def _heads(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """The config of an attention layer with the remaining heads and dimensions of heads."""
    _, heads, width = tensors["query_kernel"].shape
    return {**config, "num_heads": heads, "key_dim": width, "value_dim": tensors["value_kernel"].shape[2]}


def _scaled(config: Mapping[str, Any], tensors: Tensors) -> Tensors:
    """The tensors of an attention layer; queries are rescaled, since Keras divides scores by the root of the new head size."""
    factor = (tensors["query_kernel"].shape[2] / config["key_dim"]) ** 0.5
    return {name: tensor * factor if name.startswith("query_") else tensor for name, tensor in tensors.items()}


# Layers that are computed by Keras, but can be pruned: functions (config, tensors) -> config, and (config, tensors) -> tensors.
BY_KERAS = {"MultiHeadAttention": (_heads, _scaled)}
ACTIVATED = (
    "Dense",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "Conv2DTranspose",
    "DepthwiseConv2D",
    "SeparableConv2D",
)  # classes of layers with an activation
