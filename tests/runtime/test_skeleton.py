"""The skeleton of an ONNX file is the file without the raw data of its initializers."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from mirabelle.runtime.skeleton import split, written


def model() -> ModelProto:
    weights = [
        numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w"),
        numpy_helper.from_array(np.zeros(0), "e"),
    ]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size]) for name, size in (("x", 2), ("y", 3))]
    return helper.make_model(helper.make_graph([node], "main", values[:1], values[1:], weights))


def test_a_skeleton_is_the_model_without_the_data_of_its_tensors() -> None:
    proto = model()
    skeleton, raws = split(proto.SerializeToString(deterministic=True))
    assert [bytes(raw) for raw in raws] == [tensor.raw_data for tensor in proto.graph.initializer]
    for tensor in proto.graph.initializer:
        tensor.ClearField("raw_data")
    assert skeleton == proto.SerializeToString(deterministic=True)


def test_a_model_is_written_as_protobuf_writes_it() -> None:
    whole, empty = model(), ModelProto(producer_name="mirabelle")
    whole.metadata_props.add(key="a", value="b")
    for proto in (whole, empty):
        due = proto.SerializeToString(deterministic=True)
        assert written(proto).getvalue() == due
    assert not whole.graph.initializer


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-1], "too early"),
        (lambda data: data + b"\x12\x01x", "not in order"),
        (lambda data: data + data[data.index(b"\x3a") :], "two graphs|not in order"),
        (lambda data: data.replace(b"\x08", b"\x88\x00", 1), "needless"),
        (lambda data: b"\x0b" + data, "unknown kind 3"),
        (lambda data: b"\x08" + b"\xff" * 11, "longer than ten"),
    ],
)
def test_what_protobuf_would_write_in_another_way_is_refused(change, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=words):
        split(change(model().SerializeToString(deterministic=True)))


def test_fields_of_later_versions_stay_in_the_skeleton_if_they_come_last() -> None:
    later = b"\xf2\x3f\x03new"  # field 1022
    data = model().SerializeToString(deterministic=True) + later
    skeleton, _ = split(data)
    assert skeleton.endswith(later)
    assert skeleton == ModelProto.FromString(skeleton).SerializeToString(deterministic=True)
