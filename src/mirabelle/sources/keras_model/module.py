"""A Keras model as a module of torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from mirabelle.batch import Batch
from mirabelle.errors import UserError
from mirabelle.sources.keras_model.layers import ACTIVATED, CONVERTERS
from mirabelle.sources.keras_model.library import library

_MASKED = ("Embedding", "LSTM", "GRU", "Bidirectional")  # which look at masks, that torch's layers do not


class Graph:
    """The Keras model behind a module: tells how layers follow on each other, and is one for all copies of the module.

    Args:
        model: functional or sequential; it is run, and stays as it is.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.function = getattr(model, "_functional", None) or model

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self)] = self
        return self


class Dropped(nn.Dropout):
    """Dropout that takes whatever Keras passes to it."""

    def forward(self, input: Tensor, *_: Any, **__: Any) -> Tensor:  # noqa: A002 (as torch names it)
        return super().forward(input)


class ByKeras(nn.Module):
    """A layer that Keras computes, its weights parameters and buffers of ours.

    Args:
        layer: of Keras; shared by all copies, and never changed.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.graph = Graph(layer)
        self.places: dict[str, list[str]] = {}
        for kind, variables in (("trained", layer.trainable_variables), ("fixed", layer.non_trainable_variables)):
            self.places[kind] = []
            for variable in variables:
                place = _safe("_".join(variable.path.split("/")[-2:]), self)
                value = torch.from_numpy(np.array(variable.numpy()))
                if kind == "trained":
                    self.register_parameter(place, nn.Parameter(value))
                else:
                    self.register_buffer(place, value)
                self.places[kind].append(place)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        held = [[getattr(self, place) for place in self.places[kind]] for kind in ("trained", "fixed")]
        return self.graph.model.stateless_call(*held, *args, **kwargs)[0]


class KerasModule(nn.Module):
    """A functional or sequential Keras model whose layers are torch's own, under their Keras names.

    Dense, convolution, norm, embedding, LSTM and GRU layers become modules of torch, so that every step finds them; other
    layers run as Keras has them, on its torch backend. Inputs are laid out as in Keras, channels last.

    Args:
        model: built.

    Raises:
        UserError: E121 for a subclass of `keras.Model`, whose graph nobody knows.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.graph = Graph(model)
        if not hasattr(self.graph.function, "_run_through_graph"):
            message = f"{type(model).__name__} is a subclass of keras.Model, which tells no graph of layers"
            raise UserError("E121", message, "build it as a functional or sequential model")
        self.names: dict[str, str] = {}  # of our modules, by those of their layers
        self.converted: set[str] = set()  # the layers that are modules of torch
        masked = any(getattr(layer, "mask_zero", False) or type(layer).__name__ == "Masking" for layer in self.layers())
        for layer in self.layers():
            self._take(layer, masked=masked)
        self.eval()

    def layers(self) -> list[Any]:
        """The layers of the Keras model, in its order."""
        return list(self.graph.function.operations)

    def nested(self) -> Mapping[str, KerasModule]:
        """Models inside of the model, by the names of their layers."""
        found = {name: getattr(self, place) for name, place in self.names.items()}
        return {name: module for name, module in found.items() if isinstance(module, KerasModule)}

    def example(self, count: int = 2) -> Batch | None:
        """Drawn inputs, where the model tells their sizes."""
        drawn = []
        for position, value in enumerate(self.graph.function.inputs):
            if any(size is None for size in value.shape[1:]):
                return None
            shape = (count, *value.shape[1:])
            floats = "float" in str(value.dtype)
            generator = torch.Generator().manual_seed(position)
            drawn.append(torch.rand(shape, generator=generator) if floats else torch.ones(shape, dtype=torch.int64))
        return Batch(drawn[0] if len(drawn) == 1 else tuple(drawn), torch.zeros(count))

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        names = [value.name for value in self.graph.function.inputs]
        inputs = [*args, *(kwargs[name] for name in names if name in kwargs)]
        found = self.graph.function._run_through_graph(inputs, operation_fn=self.computing)
        several = found.values() if isinstance(found, dict) else found if isinstance(found, (list, tuple)) else [found]
        return next(iter(several)) if len(several) == 1 else tuple(several)

    def _take(self, layer: Any, *, masked: bool) -> None:
        """Hold what of a layer has weights, or is random, as a module."""
        keras, kind = library(), type(layer).__name__
        name = _safe(layer.name, self)
        if isinstance(layer, keras.Model):
            self.names[layer.name] = name
            self.add_module(name, KerasModule(layer))
            return
        if kind == "Dropout":
            self.names[layer.name] = name
            self.add_module(name, Dropped(layer.rate))
            return
        if not getattr(layer, "weights", ()):
            return
        unmasked = not masked or kind not in _MASKED
        made = CONVERTERS[kind].made(layer) if kind in CONVERTERS and unmasked else None
        if made is not None:
            self.converted.add(layer.name)
        self.names[layer.name] = name
        self.add_module(name, made if made is not None else ByKeras(layer))

    def computing(self, layer: Any) -> Callable[..., Any]:
        """What computes a layer."""
        if layer.name not in self.names:
            return layer  # type: ignore[no-any-return]
        module = getattr(self, self.names[layer.name])
        if layer.name not in self.converted:
            return module  # type: ignore[no-any-return]
        kind = type(layer).__name__

        def computed(x: Tensor, *_: Any, **__: Any) -> Any:
            found = CONVERTERS[kind].called(layer, module, x)
            return layer.activation(found) if kind in ACTIVATED else found

        return computed


def _safe(name: str, module: nn.Module) -> str:
    """A name of Keras as one that is free in a module."""
    plain = re.sub(r"\W", "_", name)
    return f"{plain}_" if hasattr(module, plain) else plain
