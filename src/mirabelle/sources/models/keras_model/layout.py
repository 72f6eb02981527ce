"""Where channels stand while a model runs: behind the batch between layers of torch, at the end wherever Keras looks.

So a convolution, its norm, its activation and the next convolution follow on each other without a transposition in between, as
in a model that was written in torch; quantization takes that for granted, and so do runtimes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# Of these every element of the result depends on the same element of each input alone.
_MERGING = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")
_POINTWISE = ("Dropout", "ReLU", "LeakyReLU", "ELU", *_MERGING)
_ACTIVATIONS = (
    "linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "swish", "mish", "sigmoid", "hard_sigmoid",
    "hard_silu", "hard_swish", "hard_tanh", "tanh", "softplus", "softsign", "exponential", "log_sigmoid",
)  # fmt: skip
# Classes that Keras computes in either layout, without the "1D", "2D", "3D" at their ends.
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
    """A tensor that Keras has with its channels last, here behind the batch.

    Args:
        tensor: (batch, channels, places…).
    """

    tensor: Tensor


def first(x: Tensor | Behind) -> Tensor:
    """Channels behind the batch."""
    return x.tensor if isinstance(x, Behind) else x.movedim(-1, 1)


def last(x: Any) -> Any:
    """What Keras would have: channels last, in every tensor of lists and dicts."""
    if isinstance(x, Behind):
        return x.tensor.movedim(1, -1)
    if isinstance(x, (list, tuple)):
        return type(x)(last(item) for item in x)
    return {key: last(item) for key, item in x.items()} if isinstance(x, dict) else x


def as_in_keras(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call on tensors as Keras has them."""
    return lambda *args, **kwargs: call(*last(args), **last(kwargs))


def is_pointwise(activation: Any) -> bool:
    """Whether an activation looks at single elements, so that it does not matter where channels stand."""
    return getattr(activation, "__name__", "") in _ACTIVATIONS


def twin_of(layer: Any) -> Any | None:
    """The same layer with channels behind the batch; None where Keras computes it in one layout alone."""
    kind = type(layer).__name__
    if kind[:-2] not in _IN_EITHER or getattr(layer, "data_format", "") != "channels_last":
        return None
    return type(layer).from_config({**layer.get_config(), "data_format": "channels_first"})


def either(layer: Any, call: Callable[..., Any], twin: Any | None) -> Callable[..., Any] | None:
    """The call of a layer without weights that leaves channels where they are; None for other layers.

    Args:
        layer: of Keras.
        call: what computes it on tensors as Keras has them.
        twin: as `twin_of` gives it.
    """
    if type(layer).__name__ in _POINTWISE or (type(layer).__name__ == "Activation" and is_pointwise(layer.activation)):
        return lambda *args, **kwargs: _kept(call, args, kwargs) or as_in_keras(call)(*args, **kwargs)
    if twin is None:
        return None

    def computed(x: Any, *_: Any, **__: Any) -> Any:
        if not isinstance(x, Behind):
            return call(x)
        found = twin(x.tensor)
        return Behind(found) if found.ndim == x.tensor.ndim else found

    return computed


def _kept(call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Behind | None:
    """The result where all that goes in has its channels behind the batch."""
    given = args[0] if args and isinstance(args[0], (list, tuple)) else args
    if not given or not all(isinstance(x, Behind) for x in given) or len({x.tensor.ndim for x in given}) > 1:
        return None
    tensors = [x.tensor for x in given]
    return Behind(call(*([tensors] if given is args[0] else tensors), **last(kwargs)))
