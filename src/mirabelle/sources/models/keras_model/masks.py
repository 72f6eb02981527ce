"""Layers that PyTorch computes read and give masks as Keras' layers do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mirabelle.sources.models.keras_model.layout import Behind, last, mask_of, with_mask

_GIVES_ONE = "Embedding"  # the converted class whose output may have a mask though its input has none


def takes_one_tensor(layer: Any) -> bool:
    """Whether a Keras layer is called with its input, and perhaps a mask, alone: without an initial state."""
    calls = [node.arguments for node in layer._inbound_nodes]
    return all(len(call.keras_tensors) - (call.kwargs.get("mask") is not None) == 1 for call in calls)


def masking(layer: Any, call: Callable[[Any], Any]) -> Callable[..., Any]:
    """A function that computes a layer, and gives its output the mask that Keras gives it.

    Args:
        layer: the Keras layer.
        call: computes the layer for one tensor, which has its mask.
    """

    def computed(x: Tensor | Behind, *_: Any, mask: Tensor | None = None, **__: Any) -> Any:
        if mask is not None:  # given by the call; the tensor itself keeps the mask that it has for other layers
            x = with_mask(last(x).expand_as(last(x)), mask.bool())
        found, carried = call(x), mask_of(x)
        passes = layer.supports_masking and (carried is not None or type(layer).__name__ == _GIVES_ONE)
        return with_mask(found, layer.compute_mask(last(x), carried)) if passes else found

    return computed


def batch_normalized(norm: nn.Module, x: Tensor) -> Tensor:
    """The output of a batch norm; during training, positions that a mask leaves out do not count in its statistics.

    Args:
        norm: a batch norm of PyTorch, or the module that replaced it.
        x: (batch, channels, positions…), with its mask.
    """
    mask = mask_of(x)
    if mask is None or not isinstance(norm, _BatchNorm) or not norm.training:
        found: Tensor = norm(x)
        return found
    counted = mask.unsqueeze(1).expand_as(x).to(x.dtype)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    count = counted.sum(axes, keepdim=True)
    mean = (x * counted).sum(axes, keepdim=True) / count
    variance = ((x - mean).square() * counted).sum(axes, keepdim=True) / count
    with torch.no_grad():
        unbiased = variance * count / (count - 1).clamp_min(1)
        for running, value in ((norm.running_mean, mean), (norm.running_var, unbiased)):
            assert running is not None, "a norm from Keras tracks its statistics"
            running.lerp_(value.flatten().to(running.dtype), norm.momentum or 0.0)
    shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    scaled = (x - mean) * (variance + norm.eps).rsqrt()
    return scaled * norm.weight.reshape(shape) + norm.bias.reshape(shape)
