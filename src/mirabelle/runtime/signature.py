"""What an ONNX model takes and gives, read from its graph; and inputs drawn to fit, for where there are no data."""

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
    """An input or output.

    Args:
        name: in the graph.
        data_type: a number of `onnx.TensorProto`.
        sizes: of each axis: a number, the name of a free one, or "" for one that has no name; None when even their number is
            not told.
    """

    name: str
    data_type: int
    sizes: tuple[int | str, ...] | None


def signature_of(model: ModelProto) -> tuple[list[Value], list[Value]]:
    """(inputs, outputs) of a model; stored tensors that older files list as inputs are none."""
    stored = {tensor.name for tensor in model.graph.initializer}
    stored |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = [_value(value) for value in model.graph.input if value.name not in stored]
    return inputs, [_value(value) for value in model.graph.output]


def drawn_inputs(inputs: Sequence[Value], batch: int, shape: Sequence[int] | None = None, seed: int = 0) -> dict[str, Array]:
    """Arrays for every input: standard normal, 0 and 1 for integers (0 to 255 for uint8), either for booleans.

    Args:
        inputs: of the model.
        batch: size of the first axis where it is free.
        shape: sizes of the other axes, for inputs in which some of these are free.
        seed: equal seeds give equal arrays.

    Raises:
        UserError: E110 when an axis is free and `shape` does not say its size, or does not fit; E121 for types not drawn.

    Example:
        >>> drawn_inputs([Value("x", TensorProto.FLOAT, ("batch", 3))], batch=2)["x"].shape
        (2, 3)
    """
    generator = np.random.default_rng(seed)
    free = (value.sizes[0] for value in inputs if value.sizes)
    first: dict[int | str, int] = {name: batch for name in free if isinstance(name, str) and name}
    return {value.name: _drawn(value, _sizes(value, batch, shape, first), generator) for value in inputs}


def _value(value: ValueInfoProto) -> Value:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return Value(value.name, tensor.elem_type, None)
    axes = (axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in tensor.shape.dim)
    return Value(value.name, tensor.elem_type, tuple(axes))


def _sizes(value: Value, batch: int, shape: Sequence[int] | None, first: Mapping[int | str, int]) -> tuple[int, ...]:
    """The sizes to draw: numbers as they are, the first axis from `batch`, the others from `shape`."""
    if value.sizes is None:
        if shape is None:
            raise _unknown(value, "its shape")
        return (batch, *shape)
    known = [axis if isinstance(axis, int) else first.get(axis) for axis in value.sizes]
    if known and known[0] is None:
        known[0] = batch
    if isinstance(next(iter(value.sizes), ""), int) and value.sizes[0] != batch and len(value.sizes) > 1:
        raise UserError(
            "E110", f'input "{value.name}" has the fixed batch size {value.sizes[0]}; got {batch}', "give that size"
        )
    free = [position for position, size in enumerate(known) if size is None]
    if free and shape is None:
        raise _unknown(value, f'axis {free[0]} ("{value.sizes[free[0]]}")')
    if free and shape is not None:
        fits = len(shape) == len(known) - 1 and all(
            size is None or size == given for size, given in zip(known[1:], shape, strict=True)
        )
        if not fits:
            sizes = "x".join(str(size or "?") for size in known[1:])
            raise UserError(
                "E110",
                f'input "{value.name}" is {sizes} without its batch axis; got {"x".join(map(str, shape))}',
                "make it fit",
            )
        known[1:] = shape
    return tuple(size for size in known if size is not None)


def _unknown(value: Value, what: str) -> UserError:
    return UserError("E110", f'input "{value.name}" does not tell {what}', "give --input its sizes without the batch: 1x28x28")


def _drawn(value: Value, sizes: tuple[int, ...], generator: np.random.Generator) -> Array:
    if value.data_type in _NOT_DRAWN:
        kind = TensorProto.DataType.Name(value.data_type)
        raise UserError("E121", f'input "{value.name}" is of type {kind}, for which nothing can be drawn', "give real data")
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.data_type))
    if dtype.kind == "f":
        return generator.standard_normal(sizes).astype(dtype)
    if dtype.kind not in "biu":
        raise UserError(
            "E121", f'input "{value.name}" is of type {dtype.name}, for which nothing can be drawn', "give real data"
        )
    return generator.integers(0, 256 if dtype == np.uint8 else 2, size=sizes).astype(dtype)
