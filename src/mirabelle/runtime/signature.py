"""Inputs and outputs of an ONNX model, read from its graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from mirabelle.errors import UserError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Value:
    """An input or output of an ONNX model.

    Args:
        name: name in the graph.
        data_type: an element of `onnx.TensorProto.DataType`.
        sizes: the size of each axis: a number, or the name of a dynamic axis ("" without a name, or if the file says −1);
            None if the number of axes is unknown.
    """

    name: str
    data_type: int
    sizes: tuple[int | str, ...] | None


def signature_of(model: ModelProto) -> tuple[list[Value], list[Value]]:
    """(inputs, outputs) of a model, without stored tensors, which older files also list as inputs."""
    stored = {tensor.name for tensor in model.graph.initializer}
    stored |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = [_value(value) for value in model.graph.input if value.name not in stored]
    return inputs, [_value(value) for value in model.graph.output]


def check_inputs(inputs: Sequence[Value], given: Sequence[Array]) -> None:
    """Raise an error unless arrays match the inputs of a model in number, dtype and all sizes that are not dynamic.

    Raises:
        UserError: E131 if they do not match; the message names both.
    """
    if len(given) != len(inputs):
        message = f"the data have {len(given)} input{'s' * (len(given) != 1)} for each sample, the model takes {len(inputs)}"
        raise UserError("E131", message, "give the data that the model was made for")
    for value, array in zip(inputs, given, strict=True):
        if value.data_type == TensorProto.UNDEFINED or value.sizes is None:
            continue
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.data_type))
        sizes = tuple(size if isinstance(size, int) else None for size in value.sizes)
        fits = len(sizes) == array.ndim and all(
            size in (None, own) for size, own in zip(sizes[1:], array.shape[1:], strict=True)
        )
        if not fits or array.dtype != dtype:
            taken = f"{dtype.name} ({', '.join(str(size or '?') for size in sizes)})"
            message = f'the data have {array.dtype.name} {array.shape} for the input "{value.name}", which is {taken}'
            raise UserError("E131", message, "give data of this shape and type; the first axis is the batch")


def _value(value: ValueInfoProto) -> Value:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return Value(value.name, tensor.elem_type, None)
    axes = (
        axis.dim_value if axis.HasField("dim_value") and axis.dim_value >= 0 else axis.dim_param for axis in tensor.shape.dim
    )
    return Value(value.name, tensor.elem_type, tuple(axes))
