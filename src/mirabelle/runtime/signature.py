"""Inputs and outputs of an ONNX model, read from its graph; and random inputs for models without data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from mirabelle.errors import UserError

Array = npt.NDArray[Any]
_NOT_DRAWN = (TensorProto.UNDEFINED, TensorProto.STRING, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Value:
    """An input or output of an ONNX model.

    Args:
        name: name in the graph.
        data_type: an element of `onnx.TensorProto.DataType`.
        sizes: the size of each axis: a number, or the name of a dynamic axis ("" without a name); None if the number of axes is
            unknown.
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


def drawn_inputs(inputs: Sequence[Value], batch: int, shape: Sequence[int] | None = None, seed: int = 0) -> dict[str, Array]:
    """Random arrays for every input: standard normal numbers, integers of 0 and 1 (0 to 255 for uint8), or booleans.

    Args:
        inputs: inputs of the model.
        batch: batch size, if the first axis is dynamic.
        shape: sizes of the other axes, for inputs with dynamic axes.
        seed: equal seeds give equal arrays.

    Raises:
        UserError: E110 if the size of a dynamic axis is not given, or `shape` fits no input; E121 for other data types.

    Example:
        >>> drawn_inputs([Value("x", TensorProto.FLOAT, ("batch", 3))], batch=2)["x"].shape
        (2, 3)
    """
    generator = np.random.default_rng(seed)
    free = (value.sizes[0] for value in inputs if value.sizes)
    first: dict[int | str, int] = {name: batch for name in free if isinstance(name, str) and name}
    sizes = {value.name: _sizes(value, batch, shape, first) for value in inputs}
    if shape is not None and tuple(shape) not in {of_one[1:] for of_one in sizes.values()}:
        own = ", ".join(f'"{name}" is {_joined(of_one[1:])}' for name, of_one in sizes.items())
        raise UserError(
            "E110", f"no input is {_joined(shape)} without its batch axis: {own}", "give one of these shapes, or none"
        )
    return {value.name: _drawn(value, sizes[value.name], generator) for value in inputs}


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
    axes = (axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in tensor.shape.dim)
    return Value(value.name, tensor.elem_type, tuple(axes))


def _sizes(value: Value, batch: int, shape: Sequence[int] | None, first: Mapping[int | str, int]) -> tuple[int, ...]:
    """The sizes of the array for an input: fixed sizes, for dynamic axes `batch` for the first and `shape` for the others."""
    if value.sizes is None:
        if shape is None:
            raise _unknown(value, "its shape")
        return (batch, *shape)
    known = [axis if isinstance(axis, int) else first.get(axis) for axis in value.sizes]
    if known and known[0] is None:
        known[0] = batch
    if isinstance(next(iter(value.sizes), ""), int) and value.sizes[0] != batch and len(value.sizes) > 1:
        raise UserError(
            "E110", f'input "{value.name}" has the fixed batch size {value.sizes[0]}; got {batch}', "give this batch size"
        )
    free = [position for position, size in enumerate(known) if size is None]
    if free and shape is None:
        raise _unknown(value, f'axis {free[0]} ("{value.sizes[free[0]]}")')
    if free and shape is not None:
        fits = len(shape) == len(known) - 1 and all(
            size is None or size == given for size, given in zip(known[1:], shape, strict=True)
        )
        if not fits:
            own = _joined([size or "?" for size in known[1:]])
            raise UserError(
                "E110", f'input "{value.name}" is {own} without its batch axis; got {_joined(shape)}', "give a shape that fits"
            )
        known[1:] = shape
    return tuple(size for size in known if size is not None)


def _joined(sizes: Sequence[int | str]) -> str:
    """Sizes in the form of the option --input: 1x28x28."""
    return "x".join(map(str, sizes)) or "one number for each sample"


def _unknown(value: Value, what: str) -> UserError:
    return UserError(
        "E110", f'input "{value.name}" does not define {what}', "give its sizes without the batch: --input 1x28x28"
    )


def _drawn(value: Value, sizes: tuple[int, ...], generator: np.random.Generator) -> Array:
    if value.data_type in _NOT_DRAWN:
        kind = TensorProto.DataType.Name(value.data_type)
        raise UserError("E121", f'input "{value.name}" has type {kind}, for which there are no random inputs', "give real data")
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.data_type))
    if dtype.kind == "f":
        return generator.standard_normal(sizes).astype(dtype)
    if dtype.kind not in "biu":
        raise UserError(
            "E121", f'input "{value.name}" has type {dtype.name}, for which there are no random inputs', "give real data"
        )
    return generator.integers(0, 256 if dtype == np.uint8 else 2, size=sizes).astype(dtype)
