"""What a model takes and gives."""

from __future__ import annotations

from onnx import TensorProto, helper

from mirabelle.runtime.signature import Value, signature_of

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def test_a_signature_names_types_and_axes_and_leaves_stored_tensors_out() -> None:
    inputs = [
        helper.make_tensor_value_info("x", FLOAT, ["batch", 3, None]),
        helper.make_tensor_value_info("w", FLOAT, [3]),
        helper.make_tensor_value_info("any", INT64, None),
        helper.make_tensor_value_info("paddle", FLOAT, [-1, 3]),
    ]
    stored = [helper.make_tensor("w", FLOAT, [3], [1, 2, 3])]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", inputs, [inputs[0]], stored)
    inputs, outputs = signature_of(helper.make_model(graph))
    assert inputs == [Value("x", FLOAT, ("batch", 3, "")), Value("any", INT64, None), Value("paddle", FLOAT, ("", 3))]
    assert outputs[0].sizes == ("batch", 3, "")
