"""The layers of a PyTorch module or of an ONNX model, with their shapes, parameters and costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from onnx import ModelProto, numpy_helper
from torch import nn

from mirabelle.errors import UserError
from mirabelle.inspection.measure import weights_of
from mirabelle.inspection.onnx_operations import operations_of
from mirabelle.model.counting import macs_of
from mirabelle.numerics.arrays import to_numpy
from mirabelle.task.batch import Batch


@dataclass(frozen=True)
class Layer:
    """One layer with weights, or a place where products of activations are computed.

    Args:
        name: of the module.
        kind: class of the module, or operator of the ONNX node.
        shape: of the layer's largest tensor; empty without one.
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
    """The layers of a PyTorch module: every submodule that has weights of its own, or computes products of activations.

    The MACs of a product with a weight belong to the module that has the weight, whoever computes it; those of a weight that
    several modules share belong to the first of them. The sum over all layers is the number of MACs of the model.

    Args:
        model: any module.
        example: a batch on which multiply-accumulate operations are counted; without it `macs` is None.
    """
    grouped: dict[str, list[Any]] = {}
    for name, tensor in weights_of(model).items():
        grouped.setdefault(name.rpartition(".")[0], []).append(to_numpy(tensor))
    macs: dict[str, int] = {}
    if example is not None:
        found = macs_of(model, example)
        for name, count in (
            *((name.rpartition(".")[0], count) for name, count in found.by_tensor.items()),
            *found.by_module.items(),
        ):
            macs[name] = macs.get(name, 0) + count
    names = [name for name, _ in model.named_modules() if name in grouped or macs.get(name)]
    return [
        _layer(
            name or "model",
            type(model.get_submodule(name)).__name__,
            grouped.get(name, []),
            None if example is None else macs.get(name, 0),
        )
        for name in names
    ]


def layers_of_onnx(onnx: bytes, example: Batch | None = None) -> list[Layer]:
    """The layers of an ONNX model: every node that computes with stored weights, named after the module they belong to.

    Products of two activations, such as those of attention, are listed too, without parameters. The model runs once, on the
    first sample of `example` or on random inputs, to see which branches run and how often.

    Args:
        onnx: content of an .onnx file.
        example: inputs of the model; without them, `macs` are None for a model with free axes besides the batch.

    Raises:
        UserError: E141 if this is not an ONNX model, E143 if it stores tensors in other files, E131 if the example does
            not fit.
    """
    try:
        model = ModelProto.FromString(onnx)
    except DecodeError as error:
        raise UserError("E141", f"this is not an ONNX model: {error}", "give an .onnx file") from error
    if any(tensor.external_data for tensor in model.graph.initializer):
        message = "the ONNX model stores tensors in other files (external data), which are not read"
        raise UserError("E143", message, "save the model as one file")
    layers = []
    for operation in operations_of(model, None if example is None else example.inputs):
        largest = max(operation.weights, key=lambda tensor: int(np.prod(tensor.dims)), default=None)
        name = (largest.name.rpartition(".")[0] if largest is not None else "") or operation.node.output[0]
        arrays = [numpy_helper.to_array(tensor) for tensor in operation.weights]
        layers.append(_layer(name, operation.node.op_type, arrays, operation.macs))
    return layers


def _layer(name: str, kind: str, arrays: Sequence[Any], macs: int | None) -> Layer:
    largest = max((array.shape for array in arrays), key=math.prod, default=())
    total = sum(array.size for array in arrays)
    nonzero = sum(int(np.count_nonzero(array)) for array in arrays)
    return Layer(
        name=name,
        kind=kind,
        shape=tuple(largest),
        parameters=total,
        macs=macs,
        sparsity=1 - nonzero / total if total else 0.0,
        size_bytes=sum(-(-array.size * _bits(array.dtype) // 8) for array in arrays),
    )


def _bits(dtype: np.dtype[Any]) -> int:
    """Bits of one number in an ONNX file, which packs small integers; in memory each takes a byte."""
    return int(dtype.name.lstrip("uint")) if dtype.name in ("int4", "uint4", "int2", "uint2") else 8 * dtype.itemsize
