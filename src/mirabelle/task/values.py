"""Inputs and targets as people have them (arrays, tables, lists, words) as the tensors that models and losses take.

What has one meaning is taken; everything else is refused by name. Tables of pandas, and all that turns into an array of NumPy,
need no package here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mirabelle.errors import UserError
from mirabelle.numerics.arrays import Array

_FEW = 5  # names in a message
_WIDER = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}  # whole numbers that torch hardly computes with


def as_inputs(value: Any, count: int | None = None) -> Any:
    """Inputs of any kind as a tensor, or as a tuple or dict of tensors.

    A tuple or list of arrays is several inputs if each has one row for each sample, or the samples themselves if there are as
    many arrays as samples; a list of numbers, also a nested one, is one array.

    Args:
        value: a tensor; what NumPy turns into an array; or a tuple, list or dict of them.
        count: number of samples, where it is known.

    Raises:
        UserError: E131 for values that are no numbers, have gaps, or differ in shape.

    Example:
        >>> as_inputs(np.arange(4.0)[::-1]), as_inputs([[1, 2], [3, 4]]).shape
        (tensor([3., 2., 1., 0.]), torch.Size([2, 2]))
    """
    if isinstance(value, Mapping):
        return {name: as_inputs(part, count) for name, part in value.items()}
    if not isinstance(value, (tuple, list)) or not value or not all(_is_array(part) for part in value):
        return as_tensor(value, "inputs")
    parts = tuple(as_tensor(part, "inputs") for part in value)
    if len(parts) == count and any(part.dim() == 0 or len(part) != count for part in parts):
        return _stacked(parts, "inputs")
    return parts


def as_targets(value: Any) -> Any:
    """Targets of any kind as one tensor: whole numbers and truth values as int64, other numbers as float32.

    Several targets in a tuple or dict are returned as they are.

    Raises:
        UserError: E131 for values that are no numbers, have gaps, or differ in shape.

    Example:
        >>> as_targets([True, False]), as_targets(np.array([0.5], ">f8"))
        (tensor([1, 0]), tensor([0.5000]))
    """
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (tuple, list)) and value and all(_is_array(part) for part in value):
        parts = tuple(as_tensor(part, "targets") for part in value)
        if any(part.dim() for part in parts) and (isinstance(value, tuple) or len({part.shape for part in parts}) > 1):
            return parts
        return plain_targets(_stacked(parts, "targets"))
    return plain_targets(as_tensor(value, "targets"))


def plain_targets(targets: Tensor) -> Tensor:
    """Targets as int64 or float32, whatever their precision."""
    targets = plain(targets, "targets")
    return targets if targets.is_floating_point() else targets.long()


def plain(tensor: Tensor, what: str) -> Tensor:
    """A dense tensor of real numbers on the CPU: float32 for floating-point numbers of any precision, other types unchanged.

    Raises:
        UserError: E131 for complex, sparse, quantized or nested tensors, and for those without values, of device "meta".
    """
    kinds = {
        "complex": tensor.is_complex(),
        "quantized": tensor.is_quantized,
        "nested": tensor.is_nested,
        "meta": tensor.is_meta,
        "sparse": tensor.layout != torch.strided,
    }
    kind = next((name for name, found in kinds.items() if found), None)
    if kind is not None:
        raise UserError("E131", f"{what} are a {kind} tensor", _REMEDIES[kind])
    tensor = tensor.detach().cpu()
    wider = _WIDER.get(str(tensor.dtype).removeprefix("torch."))
    if wider is not None:
        return torch.from_numpy(_native(tensor.numpy(), what))
    return tensor.float() if tensor.is_floating_point() else tensor


def as_tensor(value: Any, what: str) -> Tensor:
    """One tensor from a tensor, an array, a table or a list of numbers.

    Args:
        value: to be converted; nothing is copied if it need not be.
        what: its name in messages.

    Raises:
        UserError: E131 for values that are no numbers, have gaps, or differ in shape.
    """
    if isinstance(value, Tensor):
        return plain(value, what)
    array = _native(_array_of(value, what), what)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing writes into data
        return torch.from_numpy(array)


_REMEDY_MISSING = "fill them, or leave these samples out"
_REMEDY_TEXTS = "give texts as tokens (int64) or as a .tsv file, and classes all as names or all as numbers"
_REMEDY_COMPLEX = "give real and imaginary parts as two channels"
_REMEDIES = {
    "complex": _REMEDY_COMPLEX,
    "quantized": "give x.dequantize()",
    "nested": "pad the samples to one shape: torch.nested.to_padded_tensor(x, 0.0)",
    "meta": 'give tensors with values; device "meta" holds none',
    "sparse": "give x.to_dense()",
}  # of kinds of tensors
_REFUSED = {
    "c": ("complex numbers", _REMEDY_COMPLEX),
    "M": ("dates", "give numbers, such as days since a date"),
    "m": ("differences of times", "give numbers, such as seconds"),
    "U": ("texts", _REMEDY_TEXTS),
    "S": ("texts", _REMEDY_TEXTS),
    "V": ("raw bytes", "give numbers"),
}  # kinds of arrays: what they are in words, and the remedy


def _native(array: Array, what: str) -> Array:
    """An array that torch takes: of numbers, in the byte order of the machine, with strides from 0, floats as float32."""
    if isinstance(array, np.ma.MaskedArray):
        masked = int(np.ma.getmaskarray(array).sum())
        if masked:
            raise UserError("E131", f"{what} have {masked:,} masked values", _REMEDY_MISSING)
        array = array.data
    if array.dtype.names:
        fields = ", ".join(array.dtype.names[:_FEW])
        message = f"{what} are a structured array with the fields {fields}"
        raise UserError("E131", message, "give each field as an array of its own, such as {name: array[name]}")
    if array.dtype == object:
        array = _of_objects(array, what)
    if array.dtype.kind in _REFUSED:
        kind, remedy = _REFUSED[array.dtype.kind]
        raise UserError("E131", f"{what} must be numbers; got {kind} ({array.dtype})", remedy)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what becomes infinite is refused with the data
            array = array.astype(np.float32, copy=False)
    wider = _WIDER.get(array.dtype.name)
    if wider is not None:
        if array.size and int(array.max()) > np.iinfo(wider).max:
            raise UserError("E131", f"{what} go up to {int(array.max())}, more than {wider} holds", "give smaller numbers")
        array = array.astype(wider)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.ascontiguousarray(array) if any(stride < 0 for stride in array.strides) else array


def _of_objects(array: Array, what: str) -> Array:
    """An array of objects as one of numbers, or of equally shaped arrays as one array."""
    values = array.ravel().tolist()
    missing = next((value for value in values if value is None or type(value).__name__ == "NAType"), values)
    if missing is not values:
        raise UserError("E131", f"{what} have missing values ({missing})", _REMEDY_MISSING)
    if any(_is_array(value) or isinstance(value, (list, tuple)) for value in values):
        whole = _stacked([as_tensor(value, what) for value in values], what)
        return whole.reshape(*array.shape, *whole.shape[1:]).numpy()
    return _plain_array(values, what).reshape(array.shape)


def _array_of(value: Any, what: str) -> Array:
    """The array of a value that is no tensor; columns of tables are checked, so that their message has a name."""
    if hasattr(value, "toarray"):
        raise UserError("E131", f"{what} are a sparse matrix ({type(value).__name__})", "give x.toarray()")
    columns = getattr(value, "columns", None)
    if columns is not None and hasattr(value, "dtypes"):  # a table of pandas
        return np.stack([_column(value[name], f'{what} in column "{name}"') for name in columns], axis=1)
    if hasattr(value, "isna") and hasattr(value, "to_numpy"):  # a column of pandas
        return _column(value, what)
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, (str, bytes)) or not (isinstance(value, (tuple, list)) or hasattr(value, "__array__")):
        remedy = "give a tensor or an array, or a tuple or dict of them"
        raise UserError("E131", f"{what} must be tensors or arrays; got {type(value).__name__}", remedy)
    return np.asarray(value) if hasattr(value, "__array__") else _plain_array(value, what)


def _column(column: Any, what: str) -> Array:
    """The numbers of a column of a table."""
    gaps = int(column.isna().sum())
    if gaps:
        raise UserError("E131", f"{what} have {gaps:,} missing values", _REMEDY_MISSING)
    if str(column.dtype) == "category":
        remedy = "give numbers, such as one column for each category, or the path of a .csv file, which Mirabelle encodes"
        raise UserError("E131", f"{what} are categories", remedy)
    array: Array = column.to_numpy()
    if str(column.dtype)[:1].isupper():  # types of pandas that can have gaps, such as "Int64"
        array = array.astype(str(column.dtype).lower())
    return _native(array, what)


def _plain_array(values: Sequence[Any], what: str) -> Array:
    """A list of numbers as an array; lists of different lengths are refused."""
    try:
        found = np.array([_item(value) for value in values])
    except (ValueError, TypeError, OverflowError) as error:
        message = f"{what} are lists of different lengths or kinds: {error}"
        raise UserError("E131", message, "pad the samples to one length") from error
    if found.dtype == object:
        kinds = ", ".join(sorted({type(value).__name__ for value in values})[:_FEW])
        raise UserError("E131", f"{what} must be numbers; got {kinds}", "give numbers")
    return found


def _item(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def _stacked(parts: Sequence[Tensor], what: str) -> Tensor:
    """Samples of equal shapes as one tensor."""
    shapes = sorted({tuple(part.shape) for part in parts})
    if len(shapes) > 1:
        few = ", ".join(map(str, shapes[:_FEW]))
        raise UserError("E131", f"{what} have samples of different shapes: {few}", "pad the samples to one shape")
    return torch.stack(list(parts))


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or (hasattr(value, "__array__") and not isinstance(value, (str, bytes)))
