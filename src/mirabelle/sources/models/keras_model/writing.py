"""Convert a compressed module that was loaded from Keras back to a Keras model with its new widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError, first_line
from mirabelle.numerics.arrays import to_numpy
from mirabelle.sources.models.keras_model.compiling import Compilation, compilation_of, compile_like, save_portable
from mirabelle.sources.models.keras_model.converting import Tensors
from mirabelle.sources.models.keras_model.layers import BY_KERAS, CONVERTERS
from mirabelle.sources.models.keras_model.library import library
from mirabelle.sources.models.keras_model.module import ByKeras, KerasModule
from mirabelle.sources.models.native import plain_tensors


class KerasFile(KerasModule):
    """A PyTorch module from a Keras model that can be saved as a `.keras` file again.

    Args:
        model: a built Keras model.
        compilation: how the model in its file was compiled; by default as the given model was.
    """

    def __init__(self, model: Any, compilation: Compilation | None = None) -> None:
        super().__init__(model)
        self.graph.compilation = compilation or compilation_of(model)

    def write_back(self, model: nn.Module, folder: Path) -> str:
        """Save the compressed model as `model.keras`, which Keras can load with any backend.

        It is compiled as the original was, if by an optimizer, a loss and metrics of Keras itself.
        """
        made = keras_model_of(self, model)
        compile_like(made, self.graph.compilation)
        save_portable(made, folder / "model.keras")
        return "model.keras"


def keras_model_of(dense: KerasModule, model: nn.Module) -> Any:
    """The Keras model that computes the same as a compressed module.

    Args:
        dense: the module as it was loaded from the Keras file.
        model: the compressed module; quantized weights are dequantized.

    Raises:
        UserError: E121 if a layer that is computed by Keras was pruned, or if the widths do not fit together.
    """
    return _rebuilt(dense, _tensors_and_groups(model), "")


def _tensors_and_groups(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model, and the numbers of groups of its convolutions as additional tensors."""
    groups = {name: getattr(module, "groups", None) for name, module in model.named_modules()}
    counts = {f"{name}.groups": torch.tensor(count) for name, count in groups.items() if isinstance(count, int)}
    return {**plain_tensors(model), **counts}


def _rebuilt(dense: KerasModule, tensors: Tensors, prefix: str) -> Any:
    """The Keras model of a module whose tensors have this prefix."""
    nested = {name: _rebuilt(inner, tensors, f"{prefix}{dense.names[name]}.") for name, inner in dense.nested().items()}
    own = {name: _below(tensors, f"{prefix}{place}.") for name, place in dense.names.items() if name not in nested}
    kinds = {layer.name: type(layer).__name__ for layer in dense.layers()}

    def copy(layer: Any) -> Any:
        if layer.name in nested:
            return nested[layer.name]
        config, kind = layer.get_config(), type(layer).__name__
        if layer.name in dense.converted:
            config = CONVERTERS[kind].config(config, own[layer.name])
        elif kind in BY_KERAS:
            own[layer.name] = BY_KERAS[kind][1](config, own[layer.name])
            config = BY_KERAS[kind][0](config, own[layer.name])
        return type(layer).from_config(config)

    try:
        with patch.object(dense.graph.model, "compiled", new=False):  # Keras would compile the copy, by code that may fail
            made = library().models.clone_model(dense.graph.model, clone_function=copy)
    except (ValueError, TypeError) as error:
        message = f"the new widths do not fit the Keras model: {first_line(error)}"
        raise UserError("E121", message, "exclude the layers in this message from pruning") from error
    for layer in made.layers:
        if layer.name in dense.converted:
            layer.set_weights(CONVERTERS[kinds[layer.name]].weights(layer.get_config(), own[layer.name]))
        elif layer.name in own and isinstance(held := getattr(dense, dense.names[layer.name]), ByKeras):
            _set_weights(layer, held, own[layer.name])
    return made


def _set_weights(layer: Any, held: ByKeras, tensors: Tensors) -> None:
    """Set the weights of a layer that is computed by Keras."""
    for kind, variables in (("trained", layer.trainable_variables), ("fixed", layer.non_trainable_variables)):
        for variable, place in zip(variables, held.places[kind], strict=True):
            shape = tuple(tensors[place].shape)
            if tuple(variable.shape) != shape:
                message = f'layer "{layer.name}" is computed by Keras with {tuple(variable.shape)}, and was pruned to {shape}'
                raise UserError("E121", message, "exclude it from pruning, or use the ONNX file")
            variable.assign(to_numpy(tensors[place]))


def _below(tensors: Tensors, place: str) -> Tensors:
    """The tensors whose names have this prefix, without the prefix."""
    return {name.removeprefix(place): tensor for name, tensor in tensors.items() if name.startswith(place)}
