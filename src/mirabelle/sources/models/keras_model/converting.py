"""What it takes to turn one class of Keras layers into a module of torch, and back.

A layer is told by its class, its config and its weights; a converter knows how the module is made, how it is called on tensors
that are laid out as Keras has them (channels last), and what config and weights stand for the module's tensors afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Array: TypeAlias = npt.NDArray[Any]
Tensors: TypeAlias = Mapping[str, Tensor]  # of a module, by their names in it


@dataclass(frozen=True)
class Converter:
    """How one class of layers goes to torch and back.

    Args:
        made: layer -> module, or None where torch has none like it.
        called: (layer, module, x) -> what the layer gives, its activation left out.
        config: (config, tensors) -> the config with the widths of the tensors.
        weights: (config, tensors) -> the layer's weights, in the order of Keras.
        spatial: whether it is called with channels behind the batch, wherever Keras has them, and gives them there.
    """

    made: Callable[[Any], nn.Module | None]
    called: Callable[[Any, Any, Tensor], Tensor]
    config: Callable[[Mapping[str, Any], Tensors], dict[str, Any]]
    weights: Callable[[Mapping[str, Any], Tensors], list[Array]]
    spatial: bool = False


def array_of(tensor: Tensor) -> Array:
    """A tensor as Keras sets it."""
    found: Array = np.ascontiguousarray(tensor.detach().float().numpy())
    return found


def tensors_of(layer: Any) -> list[Tensor]:
    """The weights of a layer of Keras."""
    return [torch.from_numpy(np.array(weight)) for weight in layer.get_weights()]
