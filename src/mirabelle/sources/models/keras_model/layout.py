"""The memory layout of tensors: channels first between PyTorch layers, channels last for layers computed by Keras.

A convolution, its norm, its activation and the next convolution then follow each other without transposes, as in a model
written in PyTorch. Quantization and the runtimes rely on this.

The mask of a tensor, (batch, positions), False for padding, stays with it in either layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

_MASK = "_keras_mask"  # Keras' own attribute of a tensor
Given = TypeVar("Given")

# Layers that compute every element of the output from the same element of each input.
_MERGING = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")
_POINTWISE = ("Dropout", "ReLU", "LeakyReLU", "ELU", *_MERGING)
_ACTIVATIONS = (
    "linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "swish", "mish", "sigmoid", "hard_sigmoid",
    "hard_silu", "hard_swish", "hard_tanh", "tanh", "softplus", "softsign", "exponential", "log_sigmoid",
)  # fmt: skip
# Classes that Keras can compute in both layouts, without the suffixes "1D", "2D", "3D".
_IN_EITHER = (
    "MaxPooling",
    "AveragePooling",
    "GlobalMaxPooling",
    "GlobalAveragePooling",
    "ZeroPadding",
    "Cropping",
    "UpSampling",
)


@dataclass(frozen=True)
class Behind:
    """A channels-first tensor, in place of the channels-last tensor that Keras would have.

    Args:
        tensor: (batch, channels, positions…).
    """

    tensor: Tensor


def mask_of(x: Any) -> Tensor | None:
    """The mask of a tensor of PyTorch or Keras; None if it has none."""
    found: Tensor | None = getattr(x.tensor if isinstance(x, Behind) else x, _MASK, None)
    return found


def with_mask(x: Given, mask: Tensor | None) -> Given:
    """The same tensor, after it was given a mask; unchanged if there is none."""
    if mask is not None:
        setattr(x.tensor if isinstance(x, Behind) else x, _MASK, mask)
    return x


def first(x: Tensor | Behind) -> Tensor:
    """The tensor with channels first, (batch, channels, …)."""
    return x.tensor if isinstance(x, Behind) else with_mask(x.movedim(-1, 1), mask_of(x))


def last(x: Any) -> Any:
    """The tensor with channels last, as in Keras; also for the tensors in lists, tuples and dicts."""
    if isinstance(x, Behind):
        return with_mask(x.tensor.movedim(1, -1), mask_of(x))
    if isinstance(x, (list, tuple)):
        return type(x)(last(item) for item in x)
    return {key: last(item) for key, item in x.items()} if isinstance(x, dict) else x


def as_in_keras(call: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its arguments converted to channels last."""
    return lambda *args, **kwargs: call(*last(args), **last(kwargs))


def is_pointwise(activation: Any) -> bool:
    """Whether an activation is elementwise, so that it does not depend on the layout."""
    return getattr(activation, "__name__", "") in _ACTIVATIONS


def twin_of(layer: Any) -> Any | None:
    """The same layer for channels-first tensors; None if Keras computes it in one layout only."""
    kind = type(layer).__name__
    if kind[:-2] not in _IN_EITHER or getattr(layer, "data_format", "") != "channels_last":
        return None
    return type(layer).from_config({**layer.get_config(), "data_format": "channels_first"})


def either(layer: Any, call: Callable[..., Any], twin: Any | None) -> Callable[..., Any] | None:
    """A function that computes a layer without weights in the layout of its input; None if the layer does not allow it.

    Args:
        layer: the Keras layer.
        call: computes the layer for channels-last tensors.
        twin: the same layer for channels-first tensors, from `twin_of`.
    """
    if type(layer).__name__ in _POINTWISE or (type(layer).__name__ == "Activation" and is_pointwise(layer.activation)):
        return lambda *args, **kwargs: _kept(call, args, kwargs) or as_in_keras(call)(*args, **kwargs)
    if twin is None:
        return None

    def computed(x: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = last(args), last(kwargs)  # a mask, (batch, positions), is the same in either layout
        if not isinstance(x, Behind):
            return call(x, *args, **kwargs)
        found = twin(x.tensor, *args, **kwargs)
        return Behind(found) if found.ndim == x.tensor.ndim else found

    return computed


def _kept(call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Behind | None:
    """The channels-first result if all inputs are channels-first, else None."""
    given = args[0] if args and isinstance(args[0], (list, tuple)) else args
    if not given or not all(isinstance(x, Behind) for x in given) or len({x.tensor.ndim for x in given}) > 1:
        return None
    tensors = [x.tensor for x in given]
    return Behind(call(*([tensors] if given is args[0] else tensors), **last(kwargs)))
