"""The layers of a PyTorch module or of an ONNX model, with their shapes, parameters and costs."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper, shape_inference
from torch import nn

from mirabelle.errors import UserError
from mirabelle.inspection.measure import multiply_accumulates_by_module, weights_of
from mirabelle.numerics.arrays import to_numpy
from mirabelle.task.batch import Batch

_TRANSPARENT = ("DequantizeLinear", "Transpose", "Cast", "Reshape", "Identity")


@dataclass(frozen=True)
class Layer:
    """One layer with weights.

    Args:
        name: of the module.
        kind: class of the module, or operator of the ONNX node.
        shape: of the layer's largest tensor.
        parameters: number of stored numbers.
        macs: multiply-accumulate operations for one sample; None if unknown.
        sparsity: share of zeros among the parameters, in [0, 1].
        size_bytes: bytes of the stored tensors.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int | None
    sparsity: float
    size_bytes: int

    def to_data(self) -> dict[str, Any]:
        return asdict(self)


def layers_of_module(model: nn.Module, example: Batch | None) -> list[Layer]:
    """The layers of a PyTorch module: every submodule that has weights of its own.

    Args:
        model: any module.
        example: a batch on which multiply-accumulate operations are counted; without it `macs` is None.
    """
    macs: Mapping[str, int] = multiply_accumulates_by_module(model, example) if example is not None else {}
    grouped: dict[str, list[Any]] = {}
    for name, tensor in weights_of(model).items():
        grouped.setdefault(name.rpartition(".")[0], []).append(to_numpy(tensor))
    return [
        _layer(name or "model", type(model.get_submodule(name)).__name__, arrays, _macs_of(name, macs, example))
        for name, arrays in grouped.items()
    ]


def layers_of_onnx(onnx: bytes) -> list[Layer]:
    """The layers of an ONNX model: every node that computes with stored weights, named after the module they belong to.

    Args:
        onnx: content of an .onnx file.

    Raises:
        UserError: E141 if this is not an ONNX model, E143 if it stores tensors in other files.
    """
    try:
        model = ModelProto.FromString(onnx)
    except DecodeError as error:
        raise UserError("E141", f"this is not an ONNX model: {error}", "give an .onnx file") from error
    if any(tensor.external_data for tensor in model.graph.initializer):
        message = "the ONNX model stores tensors in other files (external data), which are not read"
        raise UserError("E143", message, "save the model as one file")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes = _shapes_of_one(model, stored=tensors)
    makers = {output: node for node in model.graph.node for output in node.output}
    layers = []
    for node in model.graph.node:
        if (
            node.op_type in _TRANSPARENT
            or node.op_type == "QuantizeLinear"
            or _stored(node.output[0], tensors, makers) is not None
        ):
            continue
        stored = [tensor for name in node.input if (tensor := _stored(name, tensors, makers)) is not None]
        weights = [numpy_helper.to_array(tensor) for tensor in stored]
        if any(array.ndim > 1 for array in weights):
            largest = max(stored, key=lambda tensor: int(np.prod(tensor.dims)))
            name = largest.name.rpartition(".")[0] or node.output[0]
            layers.append(_layer(name, node.op_type, weights, _onnx_macs(node, weights, shapes)))
    return layers


def _shapes_of_one(model: ModelProto, stored: Container[str]) -> dict[str, tuple[int, ...]]:
    """The shapes of all values for a batch of one sample; empty if the graph is fixed to another batch size."""
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        if axes and value.name not in stored:  # old IR versions list initializers as inputs, too
            axes[0].Clear()
            axes[0].dim_value = 1
    try:
        graph = shape_inference.infer_shapes(model).graph
    except shape_inference.InferenceError:
        return {}
    return {value.name: _dimensions(value) for value in (*graph.value_info, *graph.input, *graph.output)}


def _layer(name: str, kind: str, arrays: Sequence[Any], macs: int | None) -> Layer:
    largest = max(arrays, key=lambda array: array.size)
    total = sum(array.size for array in arrays)
    nonzero = sum(int(np.count_nonzero(array)) for array in arrays)
    return Layer(
        name=name,
        kind=kind,
        shape=tuple(largest.shape),
        parameters=total,
        macs=macs,
        sparsity=1 - nonzero / total if total else 0.0,
        size_bytes=sum(array.nbytes for array in arrays),
    )


def _macs_of(name: str, macs: Mapping[str, int], example: Batch | None) -> int | None:
    if example is None:
        return None
    return macs.get(name or "Global", 0)


def _stored(name: str, tensors: Mapping[str, TensorProto], makers: Mapping[str, NodeProto]) -> TensorProto | None:
    """The stored tensor that a value is computed from by layout changes and dequantization only, else None.

    Dequantization is a DequantizeLinear, or a Cast followed by a Mul.
    """
    if name in tensors:
        return tensors[name]
    node = makers.get(name)
    if node is None or node.op_type not in (*_TRANSPARENT, "Mul"):
        return None
    factors = [_stored(factor, tensors, makers) for factor in (node.input if node.op_type == "Mul" else node.input[:1])]
    found = [tensor for tensor in factors if tensor is not None]
    return max(found, key=lambda tensor: int(np.prod(tensor.dims))) if len(found) == len(factors) else None


def _onnx_macs(node: NodeProto, weights: Sequence[Any], shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Multiply-accumulate operations for one sample: every weight is used once at each position of the output."""
    output = shapes.get(node.output[0])
    weight = max(weights, key=lambda array: array.size)
    if output is None or 0 in output:
        return None
    positions = int(np.prod(output[2:])) if node.op_type == "Conv" else int(np.prod(output[:-1]))
    return int(weight.size) * positions if node.op_type in ("Conv", "Gemm", "MatMul", "MatMulInteger") else 0


def _dimensions(value: Any) -> tuple[int, ...]:
    return tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
