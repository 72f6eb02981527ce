"""A Keras model as a module of torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.sources.models.keras_model.layers import ACTIVATED, CONVERTERS
from mirabelle.sources.models.keras_model.layout import Behind, as_in_keras, either, first, is_pointwise, last, twin_of
from mirabelle.sources.models.keras_model.library import library
from mirabelle.task.batch import Batch

_LAST = "channels_last"
_MASKED = ("Embedding", "LSTM", "GRU", "Bidirectional")  # which look at masks, that torch's layers do not


class Graph:
    """The Keras model behind a module: tells how layers follow on each other, and is one for all copies of the module.

    Args:
        model: functional or sequential; it is run, and stays as it is.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.function = getattr(model, "_functional", None) or model
        self.twins: dict[str, Any] = {}  # of layers without weights, with channels behind the batch

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

    A softmax at the very end is left out: outputs are scores, of which losses, teachers and metrics make what they need. What
    is written back has it again.

    Args:
        model: built.
        ends: whether its outputs are those of the whole model.

    Raises:
        UserError: E121 for a subclass of `keras.Model`, whose graph nobody knows.
    """

    def __init__(self, model: Any, *, ends: bool = True) -> None:
        super().__init__()
        self.graph = Graph(model)
        if not hasattr(self.graph.function, "_run_through_graph"):
            message = f"{type(model).__name__} is a subclass of keras.Model, which tells no graph of layers"
            raise UserError("E121", message, "build it as a functional or sequential model; or go on with it as an ONNX file")
        self.names: dict[str, str] = {}  # of our modules, by those of their layers
        self.converted: set[str] = set()  # the layers that are modules of torch
        self.last = self._last() if ends else ""  # the layer that gives the outputs, alone
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
        found = last(self.graph.function._run_through_graph(inputs, operation_fn=self.computing))
        several = found.values() if isinstance(found, dict) else found if isinstance(found, (list, tuple)) else [found]
        return next(iter(several)) if len(several) == 1 else tuple(several)

    def _take(self, layer: Any, *, masked: bool) -> None:
        """Hold what of a layer has weights, or is random, as a module."""
        keras, kind = library(), type(layer).__name__
        name = _safe(layer.name, self)
        if isinstance(layer, keras.Model):
            self.names[layer.name] = name
            self.add_module(name, KerasModule(layer, ends=layer.name == self.last))
            return
        if kind == "Dropout":
            self.names[layer.name] = name
            self.add_module(name, Dropped(layer.rate))
            return
        if not getattr(layer, "weights", ()):
            self.graph.twins[layer.name] = twin_of(layer)
            return
        unmasked = not masked or kind not in _MASKED
        made = CONVERTERS[kind].made(layer) if kind in CONVERTERS and unmasked else None
        if made is not None:
            self.converted.add(layer.name)
        self.names[layer.name] = name
        self.add_module(name, made if made is not None else ByKeras(layer))

    @property
    def gives_scores(self) -> bool:
        """Whether a softmax at the end was left out."""
        layer = next((layer for layer in self.layers() if layer.name == self.last), None)
        inner = self.nested().get(self.last)
        return inner.gives_scores if inner is not None else layer is not None and _is_softmax(layer)

    def as_in_keras(self, outputs: Any) -> Any:
        """Outputs of this module as those of the Keras model."""
        return outputs.softmax(-1) if self.gives_scores else outputs

    def computing(self, layer: Any) -> Callable[..., Any]:
        """What computes a layer, at the end without its softmax; channels may stand behind the batch."""
        ends = layer.name == self.last and layer.name not in self.nested() and _is_softmax(layer)
        if layer.name in self.converted:
            return self._converted(layer, ends=ends)
        if ends:
            return lambda x, *_, **__: x
        call = getattr(self, self.names[layer.name]) if layer.name in self.names else layer
        return either(layer, call, self.graph.twins.get(layer.name)) or as_in_keras(call)

    def whole(self, layer: Any) -> Callable[..., Any]:
        """What computes a converted layer as Keras has it."""
        computed = self._converted(layer, ends=False)
        return lambda x: last(computed(x))

    def _converted(self, layer: Any, *, ends: bool) -> Callable[..., Any]:
        """What computes a layer that is a module of torch; its activation is left out where it ends the model."""
        kind, module = type(layer).__name__, getattr(self, self.names[layer.name])
        converter = CONVERTERS[kind]
        spatial = converter.spatial and getattr(layer, "data_format", _LAST) == _LAST

        def computed(x: Tensor | Behind, *_: Any, **__: Any) -> Any:
            behind = spatial and (isinstance(x, Behind) or x.ndim > 2)  # noqa: PLR2004 (samples and features)
            found = converter.called(layer, module, first(x) if behind else last(x))
            given = Behind(found) if behind else found
            if ends or kind not in ACTIVATED:
                return given
            return (
                Behind(layer.activation(found)) if behind and is_pointwise(layer.activation) else layer.activation(last(given))
            )

        return computed

    def _last(self) -> str:
        """The layer that gives the only output, which no other layer reads; "" where there is none such."""
        outputs = self.graph.function.outputs
        layer = outputs[0]._keras_history.operation
        is_read = any(node.operation in self.layers() for node in layer._outbound_nodes)
        return layer.name if len(outputs) == 1 and not is_read else ""


def _is_softmax(layer: Any) -> bool:
    """Whether a layer ends in a softmax over its last axis."""
    kind = type(layer).__name__
    if kind == "Softmax":
        return layer.axis in (-1, len(layer.output.shape) - 1)
    named = getattr(getattr(layer, "activation", None), "__name__", "") == "softmax"
    return named and (kind == "Activation" or (kind in ACTIVATED and getattr(layer, "data_format", "") != "channels_first"))


def _safe(name: str, module: nn.Module) -> str:
    """A name of Keras as one that is free in a module."""
    plain = re.sub(r"\W", "_", name)
    return f"{plain}_" if hasattr(module, plain) else plain
