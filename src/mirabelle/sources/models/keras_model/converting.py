"""The interface of a converter, which turns one class of Keras layers into a PyTorch module and back.

A Keras layer is defined by its class, config and weights. A converter makes the module, calls it on tensors, and computes the
config and the weights of a Keras layer from the module's tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mirabelle.numerics.arrays import to_numpy

Array: TypeAlias = npt.NDArray[Any]
Tensors: TypeAlias = Mapping[str, Tensor]  # tensors of a module by name


@dataclass(frozen=True)
class Converter:
    """The conversion of one class of Keras layers to PyTorch and back.

    Args:
        made: layer -> module, or None if PyTorch has no equivalent module.
        called: (layer, module, x) -> the layer's output, without its activation.
        config: (config, tensors) -> the config with the widths of the tensors.
        weights: (config, tensors) -> the layer's weights, in the order of Keras.
        spatial: whether inputs and outputs of `called` are channels-first, (batch, channels, …).
    """

    made: Callable[[Any], nn.Module | None]
    called: Callable[[Any, Any, Tensor], Tensor]
    config: Callable[[Mapping[str, Any], Tensors], dict[str, Any]]
    weights: Callable[[Mapping[str, Any], Tensors], list[Array]]
    spatial: bool = False


def array_of(tensor: Tensor) -> Array:
    """A tensor as a float32 array, as Keras expects its weights."""
    found: Array = np.ascontiguousarray(to_numpy(tensor.float()))
    return found


def tensors_of(layer: Any) -> list[Tensor]:
    """The weights of a Keras layer as tensors, in the order of Keras."""
    return [torch.from_numpy(np.array(weight)) for weight in layer.get_weights()]
