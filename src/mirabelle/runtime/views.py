"""The graph of an ONNX file with its large tensors as views of the file's bytes, so that none of them is copied."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, TensorProto, helper

from mirabelle.numerics.arrays import Array
from mirabelle.runtime.skeleton import split

_WORTH = 1 << 22  # bytes of a file; below, a copy costs less than this
_LARGE = 1 << 16  # bytes of a tensor
# Integers of 32 and 64 bits may be shapes, whose values the runtime needs while it loads the graph.
_VIEWED = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8)


@dataclass(frozen=True)
class Viewed:
    """An ONNX file.

    Args:
        proto: the model; the tensors in `tensors` are marked as stored elsewhere.
        tensors: large initializers by name, as views of the file's bytes.
    """

    proto: ModelProto
    tensors: dict[str, Array] = field(default_factory=dict)


def worth_viewing(model: bytes) -> bool:
    """Whether a file is so large that `viewed` finds tensors to view."""
    return len(model) >= _WORTH


def viewed(model: bytes) -> Viewed:
    """The graph and the large tensors of a file; a small file, or one in another form than protobuf writes, is read whole.

    Example:
        >>> from onnx import helper
        >>> data = helper.make_model(helper.make_graph([], "main", [], [])).SerializeToString()
        >>> viewed(data).tensors
        {}
    """
    if not worth_viewing(model):
        return Viewed(ModelProto.FromString(model))
    try:
        skeleton, raws = split(model)
    except ValueError:
        return Viewed(ModelProto.FromString(model))
    found = Viewed(ModelProto.FromString(skeleton))
    for tensor, raw in zip(found.proto.graph.initializer, raws, strict=True):
        if len(raw) < _LARGE or tensor.data_type not in _VIEWED:
            if raw:
                tensor.raw_data = bytes(raw)
            continue
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        found.tensors[tensor.name] = np.frombuffer(raw, kind).reshape(tuple(tensor.dims))
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "memory"), ("offset", "0"), ("length", str(len(raw)))):
            tensor.external_data.add(key=key, value=value)
    return found


def structure_of(model: bytes) -> ModelProto:
    """The model without the values of its large tensors, for code that reads the graph alone."""
    return viewed(model).proto
