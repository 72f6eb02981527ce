"""What a model takes, and inputs drawn to fit."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from mirabelle.errors import UserError
from mirabelle.runtime.signature import Value, drawn_inputs, signature_of

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def test_a_signature_names_types_and_axes_and_leaves_stored_tensors_out() -> None:
    inputs = [
        helper.make_tensor_value_info("x", FLOAT, ["batch", 3, None]),
        helper.make_tensor_value_info("w", FLOAT, [3]),
        helper.make_tensor_value_info("any", INT64, None),
    ]
    stored = [helper.make_tensor("w", FLOAT, [3], [1, 2, 3])]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", inputs, [inputs[0]], stored)
    inputs, outputs = signature_of(helper.make_model(graph))
    assert inputs == [Value("x", FLOAT, ("batch", 3, "")), Value("any", INT64, None)]
    assert outputs[0].sizes == ("batch", 3, "")


def test_inputs_are_drawn_to_fit_and_equal_for_an_equal_seed() -> None:
    values = [
        Value("ids", INT64, ("batch", "length")),
        Value("scores", TensorProto.FLOAT16, ("batch", 4)),
        Value("mask", TensorProto.BOOL, ("batch", "length")),
        Value("image", TensorProto.UINT8, ("batch", 2, "batch")),
        Value("scalar", FLOAT, ()),
    ]
    drawn = drawn_inputs(values, batch=3, shape=(40,))
    assert {name: (str(array.dtype), array.shape) for name, array in drawn.items()} == {
        "ids": ("int64", (3, 40)),
        "scores": ("float16", (3, 4)),
        "mask": ("bool", (3, 40)),
        "image": ("uint8", (3, 2, 3)),
        "scalar": ("float32", ()),
    }
    assert set(np.unique(drawn["ids"])) == {0, 1}
    assert drawn["image"].max() > 1
    again, other = drawn_inputs(values, 3, (40,)), drawn_inputs(values, 3, (40,), seed=1)
    assert all(np.array_equal(again[name], drawn[name]) for name in drawn)
    assert not np.array_equal(other["scores"], drawn["scores"])


@pytest.mark.parametrize(
    ("value", "shape", "message"),
    [
        (Value("x", FLOAT, ("batch", 3, "width")), None, r'E110.*"x" does not define axis 2 \("width"\)'),
        (Value("x", FLOAT, None), None, "E110.*its shape"),
        (Value("x", FLOAT, ("batch", 3, "width")), (4, 8), r"E110.*3x\?.*got 4x8"),
        (Value("x", FLOAT, ("batch", 3, "width")), (8,), "E110.*got 8"),
        (Value("x", FLOAT, (1, 3)), None, "E110.*fixed batch size 1; got 2"),
        (Value("x", TensorProto.STRING, ("batch",)), None, "E121.*STRING"),
        (Value("x", TensorProto.COMPLEX64, ("batch",)), None, "E121.*complex64"),
    ],
)
def test_what_cannot_be_drawn_is_told(value: Value, shape: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        drawn_inputs([value], 2, shape)
