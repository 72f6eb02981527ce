"""Integers of 2 and 4 bits: as ONNX stores them, and packed one by one."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from mirabelle.artifact.mira import pack, unpack
from mirabelle.codecs.narrow import narrowed, widened
from mirabelle.runtime.canonical import canonical

TYPES = [("INT4", 4, -8, 7), ("UINT4", 4, 0, 15), ("INT2", 2, -2, 1), ("UINT2", 2, 0, 3)]


def model(*tensors: TensorProto) -> bytes:
    casts = [helper.make_node("Cast", [tensor.name], [f"y{k}"], to=TensorProto.FLOAT) for k, tensor in enumerate(tensors)]
    outputs = [helper.make_tensor_value_info(f"y{k}", TensorProto.FLOAT, tensor.dims) for k, tensor in enumerate(tensors)]
    graph = helper.make_graph(casts, "g", [], outputs, list(tensors))
    return canonical(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13), {})


@pytest.mark.parametrize(("name", "bits", "low", "high"), TYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (40, 30)])
def test_integers_are_those_of_onnx_and_come_back(name: str, bits: int, low: int, high: int, shape: tuple[int, ...]) -> None:
    kind = getattr(TensorProto, name)
    values = np.random.default_rng(0).integers(low, high + 1, shape)
    tensor = numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(kind)), "codes")
    wide = widened(tensor.raw_data, bits, shape, signed=low < 0)
    assert np.array_equal(wide, values)
    assert narrowed(wide, bits) == tensor.raw_data
    onnx = model(tensor)
    assert unpack(pack(onnx)) == onnx


@pytest.mark.parametrize(("name", "bits", "low", "high"), TYPES)
def test_sparse_integers_are_packed_one_by_one(name: str, bits: int, low: int, high: int) -> None:
    draw = np.random.default_rng(0)
    values = np.where(draw.random((100, 300)) < 0.03, high, 0)
    kind = getattr(TensorProto, name)
    tensor = numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(kind)), "codes")
    entropy = -30_000 * (0.03 * np.log2(0.03) + 0.97 * np.log2(0.97)) / 8
    assert len(pack(model(tensor))) < 1.03 * entropy + 220


def test_other_numbers_in_the_last_byte_are_kept() -> None:
    tensor = TensorProto(data_type=TensorProto.INT4, dims=[3], name="codes", raw_data=b"\x21\xf3")
    onnx = model(tensor)
    assert unpack(pack(onnx)) == onnx


def test_an_integer_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 2 bits"):
        narrowed(np.array([2], np.int8), 2)
    assert narrowed(np.array([], np.int8), 2) == b""
