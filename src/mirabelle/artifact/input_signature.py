"""The input of a deployed model: its dtype and shape, and samples from .npy files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from mirabelle.errors import UserError
from mirabelle.task.preprocessing.raw_inputs import Preprocessing, RawInputs

Array = npt.NDArray[Any]
_BATCH = 64


@dataclass(frozen=True)
class InputSignature:
    """The input of a deployed model.

    Args:
        dtype: dtype of the input.
        shape: shape of one sample; None for a dynamic size.
        most: largest number of samples in one call.
    """

    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    most: int

    def takes(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self.shape) and all(due in (None, size) for due, size in zip(self.shape, shape, strict=True))

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        one = f"({sizes},)" if len(self.shape) == 1 else f"({sizes})"
        return f"{self.dtype}, shape {one} for one sample or (batch, {sizes}) for several"

    def array_samples(self, path: Path) -> Iterable[tuple[str, Array]]:
        """(name, sample) of each sample in a .npy file, which contains one preprocessed sample or a batch of them.

        Raises:
            UserError: E131 for another dtype or shape, or values that are not finite; E143 for a pickle.
        """
        values = _read_array(path)
        given = f"{path} contains {values.dtype}, shape {values.shape}"
        one = self.takes(values.shape)
        if values.dtype != self.dtype or not (one or (values.ndim and self.takes(values.shape[1:]))):
            raise UserError("E131", given, f"the model takes {self}")
        if not values.size or (values.dtype.kind == "f" and not np.isfinite(values).all()):
            raise UserError("E131", f"{given}; it is empty, or contains NaN or infinite values", "give finite numbers")
        return [(str(path), values)] if one else ((f"{path}[{k}]", sample) for k, sample in enumerate(values))


@dataclass(frozen=True)
class Arrays(RawInputs):
    """The raw inputs of a model without stored preprocessing: arrays of preprocessed inputs."""

    raw_inputs: ClassVar[str] = "arrays"
    signature: InputSignature

    @property
    def remedy(self) -> str:
        return f"give a .npy file, already preprocessed: {self.signature}"

    def refusal(self, model: Path, path: Path, content: str) -> UserError:
        message = f"{model} contains no preprocessing, so it cannot take {content}: {path}"
        return UserError("E131", message, self.remedy)

    def samples(self, path: Path) -> Iterator[tuple[str, Array]]:
        yield from self.signature.array_samples(path)


def input_signature(model: ModelProto, preprocessing: Preprocessing | None) -> InputSignature:
    """The input of a model, checked against its preprocessing.

    Args:
        model: the deployed model.
        preprocessing: its stored preprocessing, or None.

    Raises:
        UserError: E121 for several inputs or a fixed batch size, E141 if preprocessing and model do not fit.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if preprocessing is not None and preprocessing.input_names:
        return _signature_of_tokens(inputs, preprocessing)
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise UserError("E121", f"the model takes {len(inputs)} inputs ({names})", "predict supports models with one input")
    kind = inputs[0].type.tensor_type
    if not kind.shape.dim or kind.elem_type == TensorProto.UNDEFINED:
        raise UserError("E121", "the file does not define the shape or type of the model's input", "export it again")
    batch, *sizes = [dimension.dim_value if dimension.HasField("dim_value") else None for dimension in kind.shape.dim]
    if batch not in (None, 1):
        raise UserError("E121", f"the model has the fixed batch size {batch}", "export it with a dynamic batch dimension")
    most = 1 if batch or None in sizes else _BATCH  # samples of different sizes cannot be stacked
    signature = InputSignature(_dtype(kind.elem_type), tuple(sizes), most)
    if preprocessing is not None:
        due, shape = np.dtype(preprocessing.dtype), preprocessing.shapes[0]
        if signature.dtype != due or not signature.takes(shape):
            message = f"the stored preprocessing makes {due} of shape {shape}; the model takes {signature}"
            raise UserError("E141", message, "download or copy the file again")
    return signature


def _signature_of_tokens(inputs: Sequence[ValueInfoProto], preprocessing: Preprocessing) -> InputSignature:
    """The input signature of a model that takes several inputs (batch, tokens) by name."""
    names = [value.name for value in inputs]
    if sorted(names) != sorted(preprocessing.input_names):
        due = ", ".join(preprocessing.input_names)
        message = f"the stored preprocessing makes {due}; the model takes {', '.join(names)}"
        raise UserError("E141", message, "download or copy the file again")
    batch, tokens = inputs[0].type.tensor_type.shape.dim
    length = tokens.dim_value if tokens.HasField("dim_value") else None
    return InputSignature(np.dtype(preprocessing.dtype), (length,), _BATCH if batch.dim_param else 1)


def _dtype(code: int) -> np.dtype[Any]:
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(code))
    except KeyError as error:
        raise UserError("E141", f"the model takes values of the unknown type {code}", "export it again") from error


def _read_array(path: Path) -> Array:
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError) as error:
        if "allow_pickle" in str(error):
            message = f"{path} contains Python objects (a pickle), which may run code, so it is not loaded"
            raise UserError("E143", message, "save an array of numbers with numpy.save") from error
        raise UserError("E131", f"{path} is damaged: {error}", "save it again with numpy.save") from error
    if not isinstance(values, np.ndarray):
        raise UserError("E143", f"{path} is an .npz file", "give one array, saved with numpy.save")
    return values
