"""An ONNX graph as a PyTorch module: nodes with constant weights become layers, all others are computed one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import onnx.inliner
import onnx.shape_inference
import torch
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.numerics.arrays import to_numpy
from mirabelle.runtime.drawn_inputs import drawn_inputs
from mirabelle.sources.models.onnx_graph.computing import computed
from mirabelle.sources.models.onnx_graph.layers import MADE, module_of
from mirabelle.sources.models.onnx_graph.nodes import Node, as_if_traced
from mirabelle.sources.models.onnx_graph.places import add, get, path_of
from mirabelle.sources.models.onnx_graph.reading import Reading
from mirabelle.sources.models.onnx_graph.recurrent import RECURRENT, Recurrent, has_layer
from mirabelle.sources.models.onnx_graph.values import Value, integers, is_integers, simplified, tensor_of
from mirabelle.task.batch import Batch, Inputs, tensors_of

_ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear", "Requantize", "QLinearAdd", "QLinearMul")
_HALF = (torch.float16, torch.bfloat16)
_LAYERS = {*MADE, "BatchNormalization"}


@dataclass(frozen=True)
class _Call:
    """One node of the graph, computed by the submodule named `place`, or by a function if that is None."""

    node: Node
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    place: str | None


class OnnxModule(nn.Module):
    """An ONNX graph as a PyTorch module that can be trained, pruned, quantized and exported to ONNX again.

    Convolutions, matrix products, normalizations and recurrent layers with constant weights are PyTorch layers, named as in the
    file. Other floating-point constants with several elements are parameters. Nodes that depend only on constants are computed
    once. The batch axis is dynamic, even if the file fixes it. Inputs and outputs keep their names in an exported file.

    Args:
        proto: the ONNX model, including its weights.

    Raises:
        UserError: E121 if operators are not supported (the message names all of them), or a node has unsupported attributes.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        super().__init__()
        graph = Reading(proto)
        self.inputs = graph.inputs
        self.input_names, self.output_names = [one.name for one in graph.inputs], graph.output_names
        self.fixed_batch, self.halved = graph.batch, graph.halved
        self.compared_at = ""  # the sizes at which it was compared with ONNX Runtime, if they had to be found by trial
        self._integers: dict[str, Value] = {}
        self._seen: dict[tuple[tuple[int, ...], bytes], nn.Parameter] = {}
        self._places: dict[str, str] = {}  # constant -> name of its parameter or buffer
        self._calls = [self._call(node, graph) for node in graph.nodes]
        self.rounds = any(call.node.kind in _ROUNDING for call in self._calls)
        needed = {name for call in self._calls for name in call.inputs} | set(self.output_names)
        for name in sorted(needed & graph.constants.keys()):
            self._store(name, graph)
        self._seen.clear()
        self.eval()

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        given = {**dict(zip(self.input_names, args, strict=False)), **kwargs}
        if self.halved:
            given = {name: value.float() if value.dtype in _HALF else value for name, value in given.items()}
        values: dict[str, Value] = {**given, "": None, **self._integers}
        for name, place in self._places.items():
            values[name] = get(self, place)
        batch = None if self.fixed_batch is None else self._length_of(values)
        for call in self._calls:
            inputs = [values[name] for name in call.inputs]
            found = get(self, call.place)(*inputs) if call.place is not None else self._computed(call.node, inputs, batch)
            values.update(zip(call.outputs, found if isinstance(found, list) else [found], strict=False))
        outputs = [tensor_of(values[name]) for name in self.output_names]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _length_of(self, values: Mapping[str, Value]) -> Any:
        """The number of samples in the inputs."""
        return next(values[one.name].shape[0] for one in self.inputs if one.sizes)

    def check(self, inputs: Inputs) -> None:
        """Raise an error unless the inputs have the names, the number and the sizes of the graph's inputs.

        Raises:
            UserError: E131; the message gives the actual and the required inputs. E121 if the graph cannot be exported, because
                it has a number of results that depends on values.
        """
        if isinstance(inputs, Mapping) and set(inputs) != set(self.input_names):
            message = f"the data have the inputs {', '.join(inputs)}, but the ONNX graph has {', '.join(self.input_names)}"
            raise UserError("E131", message, "name the inputs as in the graph")
        given = [inputs[name] for name in self.input_names] if isinstance(inputs, Mapping) else tensors_of(inputs)
        if len(given) != len(self.inputs):
            due_inputs = f"{len(self.inputs)} ({', '.join(self.input_names)})"
            message = f"the data have {len(given)} inputs, but the ONNX graph has {due_inputs}"
            raise UserError("E131", message, "give all of them")
        for due, tensor in zip(self.inputs, given, strict=True):
            sizes = tuple(size if isinstance(size, int) else None for size in due.sizes or ())[1:]
            fits = len(sizes) == tensor.ndim - 1 and all(map(_fits, sizes, tensor.shape[1:]))
            if due.sizes and not fits:
                required = " × ".join(str(size or "any") for size in sizes)
                own = " × ".join(map(str, tensor.shape[1:]))
                remedy = "change the size of the data, for example by `size` among the arguments of a folder of images"
                message = f'the data are {own}, but input "{due.name}" of the ONNX graph is {required}'
                raise UserError("E131", message, remedy)
        with torch.no_grad(), as_if_traced():
            self(**dict(zip(self.input_names, given, strict=True)))

    def scores_before(self, kind: str) -> str | None:
        """The name of the input of the last operator, if the graph has one output and this operator is of the given kind."""
        makers = {call.outputs[0]: call for call in self._calls}
        last = makers.get(self.output_names[0]) if len(self.output_names) == 1 else None
        return last.inputs[0] if last is not None and last.node.kind == kind else None

    def example(self, count: int = 2) -> Batch | None:
        """Random inputs; None if the graph has dynamic axes other than the batch."""
        if any(one.sizes is None or not all(isinstance(size, int) for size in one.sizes[1:]) for one in self.inputs):
            return None
        drawn = [torch.from_numpy(array) for array in drawn_inputs(self.inputs, count).values()]
        return Batch(drawn[0] if len(drawn) == 1 else tuple(drawn), torch.zeros(count))

    def _computed(self, node: Node, inputs: list[Value], batch: Any) -> Value:
        if self.fixed_batch is not None and node.kind == "Reshape" and _begins_with(inputs[1], self.fixed_batch):
            inputs = [inputs[0], integers([batch, *inputs[1].flat[1:]])]
        return computed(node, inputs)

    def _call(self, node: Node, graph: Reading) -> _Call:
        weights = [graph.constants.get(name) for name in node.inputs[1:]]
        constant = all(name in graph.constants for name in node.inputs[1:] if name)
        if node.kind in _LAYERS and len(node.inputs) > 1 and constant and node.inputs[0] not in graph.constants:
            layer = module_of(node, weights, graph.ranks.get(node.inputs[0]))
            if layer is not None:
                if isinstance(weight := getattr(layer, "weight", None), nn.Parameter):
                    layer.weight = self._shared(weight)
                place = add(self, graph.name_of(node), layer)
                return _Call(node, node.inputs[:1], node.outputs, place)
        if node.kind in RECURRENT and has_layer(node, graph.constants):
            place = add(self, graph.name_of(node), Recurrent(node, weights[:3]))
            return _Call(node, (node.inputs[0], *node.inputs[5:7]), node.outputs, place)
        return _Call(node, node.inputs, node.outputs, None)

    def _shared(self, parameter: nn.Parameter) -> nn.Parameter:
        """The first parameter with equal values, for matrices, since exporters duplicate tied weights of embedding and head.

        Vectors are not shared: equal ones are usually those of untrained normalization layers.
        """
        if parameter.ndim < 2:  # noqa: PLR2004
            return parameter
        digest = hashlib.blake2b(to_numpy(parameter.contiguous()).data, digest_size=16).digest()
        return self._seen.setdefault((tuple(parameter.shape), digest), parameter)

    def _store(self, name: str, graph: Reading) -> None:
        """Store a constant as shape integers, as a trainable parameter, or as a buffer."""
        tensor = graph.constants[name]
        plain = simplified(tensor, numbers=name in graph.of_shapes)
        if not isinstance(plain, Tensor):
            self._integers[name] = plain
            return
        learned = name in graph.learned and tensor.is_floating_point() and tensor.numel() > 1
        item = self._shared(nn.Parameter(tensor.clone())) if learned else tensor.clone()
        self._places[name] = add(self, path_of(name), item)


def _fits(due: int | None, size: int) -> bool:
    return due in (None, size)


def _begins_with(target: Value, batch: int) -> bool:
    return is_integers(target) and target.size > 1 and isinstance(target[0], int) and target[0] == batch
