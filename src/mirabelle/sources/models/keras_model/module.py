"""A Keras model as a PyTorch module."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.numerics.draws import generator_from
from mirabelle.sources.models.keras_model.calling import called
from mirabelle.sources.models.keras_model.layers import ACTIVATED, CONVERTERS
from mirabelle.sources.models.keras_model.layout import (
    Behind,
    as_in_keras,
    either,
    first,
    is_pointwise,
    last,
    mask_of,
    twin_of,
    with_mask,
)
from mirabelle.sources.models.keras_model.library import library
from mirabelle.sources.models.keras_model.masks import masking, takes_one_tensor
from mirabelle.task.batch import Batch

_LAST = "channels_last"


class Graph:
    """The Keras model of a module, which gives the order of its layers. Copies of the module share it.

    Args:
        model: a functional or sequential model; it is run, but not changed.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.function = getattr(model, "_functional", None) or model
        self.compilation: dict[str, Any] | None = None  # how a compressed model is compiled when it is saved
        self.twins: dict[str, Any] = {}  # channels-first versions of layers without weights

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self)] = self
        return self


class Dropped(nn.Dropout):
    """Dropout that ignores the additional arguments of Keras, and keeps the mask of its input."""

    def forward(self, input: Tensor, *_: Any, **__: Any) -> Tensor:  # noqa: A002 (as torch names it)
        return with_mask(super().forward(input), mask_of(input))


class ByKeras(nn.Module):
    """A layer that is computed by Keras, with its weights as parameters and buffers of this module.

    Args:
        layer: the Keras layer; it is shared by all copies and not changed.
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
        layer = self.graph.model
        variables = [*layer.trainable_variables, *layer.non_trainable_variables]
        held = [getattr(self, place) for kind in ("trained", "fixed") for place in self.places[kind]]
        with library().StatelessScope(state_mapping=list(zip(variables, held, strict=True))):
            return called(layer, *args, **kwargs)  # a call, since only that reads and gives masks


def _computing_where(given: Any) -> AbstractContextManager[Any]:
    """A context in which Keras computes on the device of a tensor; by itself it takes an accelerator that is there."""
    asked = isinstance(given, Tensor) and (given.device.type != "cpu" or torch.accelerator.is_available())
    return library().device(str(given.device)) if asked else nullcontext()


class KerasModule(nn.Module):
    """A functional or sequential Keras model as a PyTorch module, whose layers have their Keras names.

    Dense, convolution, normalization, embedding, LSTM and GRU layers become PyTorch modules, which all compression steps know;
    other layers are computed by Keras with its PyTorch backend. Inputs are channels-last, as in Keras.

    A softmax at the end is left out, since losses, teachers and metrics need logits. It is added again when the model is saved
    as a Keras model.

    Args:
        model: a built Keras model.
        ends: whether its outputs are the outputs of the whole model, and not those of a nested one.

    Raises:
        UserError: E121 for a subclass of `keras.Model`, whose graph of layers is unknown.
    """

    def __init__(self, model: Any, *, ends: bool = True) -> None:
        super().__init__()
        self.graph = Graph(model)
        if not hasattr(self.graph.function, "_run_through_graph"):
            message = f"{type(model).__name__} is a subclass of keras.Model, whose graph of layers is unknown"
            raise UserError("E121", message, "build it as a functional or sequential model, or export it to ONNX")
        self.names: dict[str, str] = {}  # names of the modules by the names of their layers
        self.converted: set[str] = set()  # the layers that are PyTorch modules
        self.last = self._last() if ends else ""  # the layer that computes the only output
        for layer in self.layers():
            self._take(layer)
        self.eval()

    def layers(self) -> list[Any]:
        """The layers of the Keras model, in its order."""
        return list(self.graph.function.operations)

    def nested(self) -> Mapping[str, KerasModule]:
        """The nested models, by the names of their layers."""
        found = {name: getattr(self, place) for name, place in self.names.items()}
        return {name: module for name, module in found.items() if isinstance(module, KerasModule)}

    def example(self, count: int = 2) -> Batch | None:
        """Random inputs; None if the model has dynamic axes other than the batch."""
        drawn = []
        for position, value in enumerate(self.graph.function.inputs):
            if any(size is None for size in value.shape[1:]):
                return None
            shape = (count, *value.shape[1:])
            floats = "float" in str(value.dtype)
            generator = generator_from(position)
            drawn.append(torch.rand(shape, generator=generator) if floats else torch.ones(shape, dtype=torch.int64))
        return Batch(drawn[0] if len(drawn) == 1 else tuple(drawn), torch.zeros(count))

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        names = [value.name for value in self.graph.function.inputs]
        inputs = [*args, *(kwargs[name] for name in names if name in kwargs)]
        with _computing_where(inputs[0]):
            found = last(self.graph.function._run_through_graph(inputs, operation_fn=self.computing))
        several = found.values() if isinstance(found, dict) else found if isinstance(found, (list, tuple)) else [found]
        return next(iter(several)) if len(several) == 1 else tuple(several)

    def _take(self, layer: Any) -> None:
        """Add a module for a layer that has weights, or is a dropout or a nested model."""
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
        made = CONVERTERS[kind].made(layer) if kind in CONVERTERS and takes_one_tensor(layer) else None
        if made is not None:
            self.converted.add(layer.name)
        self.names[layer.name] = name
        self.add_module(name, made if made is not None else ByKeras(layer))

    @property
    def gives_scores(self) -> bool:
        """Whether a softmax at the end of the model was left out."""
        layer = next((layer for layer in self.layers() if layer.name == self.last), None)
        inner = self.nested().get(self.last)
        return inner.gives_scores if inner is not None else layer is not None and _is_softmax(layer)

    def as_in_keras(self, outputs: Any) -> Any:
        """The outputs of the Keras model, computed from those of this module: with the softmax that was left out."""
        return outputs.softmax(-1) if self.gives_scores else outputs

    def computing(self, layer: Any) -> Callable[..., Any]:
        """A function that computes a layer, without the softmax at the end of the model; its tensors may be `Behind`."""
        ends = layer.name == self.last and layer.name not in self.nested() and _is_softmax(layer)
        if layer.name in self.converted:
            return self._converted(layer, ends=ends)
        if ends:
            return lambda x, *_, **__: x
        call = getattr(self, self.names[layer.name]) if layer.name in self.names else partial(called, layer)
        return either(layer, call, self.graph.twins.get(layer.name)) or as_in_keras(call)

    def whole(self, layer: Any) -> Callable[..., Any]:
        """A function that computes a converted layer with its activation, for channels-last tensors."""
        computed = self._converted(layer, ends=False)
        return lambda x: last(computed(x))

    def _converted(self, layer: Any, *, ends: bool) -> Callable[..., Any]:
        """A function that computes a layer by its PyTorch module; without the activation if the layer `ends` the model."""
        kind, module = type(layer).__name__, getattr(self, self.names[layer.name])
        converter = CONVERTERS[kind]
        spatial = converter.spatial and getattr(layer, "data_format", _LAST) == _LAST

        def computed(x: Tensor | Behind) -> Any:
            behind = spatial and (isinstance(x, Behind) or x.ndim > 2)  # noqa: PLR2004 (samples and features)
            found = converter.called(layer, module, first(x) if behind else last(x))
            given = Behind(found) if behind else found
            if ends or kind not in ACTIVATED:
                return given
            return (
                Behind(layer.activation(found)) if behind and is_pointwise(layer.activation) else layer.activation(last(given))
            )

        return masking(layer, computed)

    def _last(self) -> str:
        """The name of the layer that computes the only output, if no other layer reads it; else ""."""
        outputs = self.graph.function.outputs
        layer = outputs[0]._keras_history.operation
        is_read = any(node.operation in self.layers() for node in layer._outbound_nodes)
        return layer.name if len(outputs) == 1 and not is_read else ""


def _is_softmax(layer: Any) -> bool:
    """Whether a layer ends with a softmax over its last axis."""
    kind = type(layer).__name__
    if kind == "Softmax":
        return layer.axis in (-1, len(layer.output.shape) - 1)
    named = getattr(getattr(layer, "activation", None), "__name__", "") == "softmax"
    return named and (kind == "Activation" or (kind in ACTIVATED and getattr(layer, "data_format", "") != "channels_first"))


def _safe(name: str, module: nn.Module) -> str:
    """A Keras name as a valid attribute name that is not used in the module yet."""
    plain = re.sub(r"\W", "_", name)
    return f"{plain}_" if hasattr(module, plain) else plain
