"""ONNX files from elsewhere, packed: never with other outputs."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper
from torch import nn

from mirabelle import unpack
from mirabelle.artifact.foreign import pack_any
from mirabelle.errors import UserError
from mirabelle.runtime.canonical import canonical
from mirabelle.runtime.drawn_inputs import GivenInput
from mirabelle.runtime.runtime import default_runtime
from mirabelle.runtime.seal import SEAL

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", None])


def model(nodes: list, tensors: list, inputs=(X,), outputs=(Y,), opset: int = 21) -> ModelProto:
    graph = helper.make_graph(nodes, "foreign", list(inputs), list(outputs), tensors, doc_string="made elsewhere")
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="elsewhere", ir_version=10)
    checker.check_model(made)
    return made


def same(one: bytes, other: bytes, feed: dict[str, np.ndarray]) -> bool:
    pairs = zip(default_runtime().load(one, 1).run(feed), default_runtime().load(other, 1).run(feed), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def dense(kind: int, values: list) -> ModelProto:
    """x · cast(w), w with its values in the field that its type has for them."""
    weight = helper.make_tensor("w", kind, [4, 3], values)
    assert not weight.raw_data
    nodes = [helper.make_node("Cast", ["w"], ["wf"], to=TensorProto.FLOAT), helper.make_node("MatMul", ["x", "wf"], ["y"])]
    return model(nodes, [weight])


@pytest.mark.parametrize(
    "kind", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT8", "UINT8", "INT32", "INT64", "UINT64", "BOOL", "INT4", "UINT4"]
)
def test_typed_values_become_raw_bytes_with_equal_outputs(kind: str) -> None:
    values = [1, 0, 1, 1, 0, 0, 1, 1, 0, 1, 0, 1] if kind == "BOOL" else [3, 0, 1, 7, 2, 5, 6, 1, 4, 0, 2, 3]
    onnx = dense(getattr(TensorProto, kind), values).SerializeToString()
    result = pack_any(onnx)
    assert not result.as_it_was
    assert sorted(result.gates) == ["packed_unpacked", "same_outputs"]
    assert all(gate.passed for gate in result.gates.values())
    assert unpack(result.packed) == result.onnx
    stored = ModelProto.FromString(result.onnx).graph.initializer[0]
    assert numpy_helper.to_array(stored).astype(float).ravel().tolist() == values
    assert same(onnx, result.onnx, {"x": np.eye(4, dtype=np.float32)})


def test_a_file_that_can_be_given_back_is_packed_as_it_is() -> None:
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    onnx = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [weight]).SerializeToString(deterministic=True)
    result = pack_any(onnx)
    assert result.as_it_was
    assert unpack(result.packed) == onnx


def test_four_bits_that_are_raw_already_come_back_bit_for_bit() -> None:
    weight = helper.make_tensor("w", TensorProto.INT4, [3], np.array([0x21, 0x0F], np.uint8).tobytes(), raw=True)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])
    made = model([helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT)], [weight], inputs=(), outputs=(output,))
    onnx = made.SerializeToString(deterministic=True)
    result = pack_any(onnx)
    assert result.as_it_was
    assert unpack(result.packed) == onnx


def test_subgraphs_read_outer_tensors_and_defaults_stay() -> None:
    """Tensors used in a branch only, given out by a branch, or listed as an input whose default they are."""
    branch_out = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    one = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["b"])], "one", [], [branch_out])
    two = helper.make_graph([helper.make_node("Identity", ["v"], ["b"])], "two", [], [branch_out])
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=one, else_branch=two),
    ]
    tensors = [
        helper.make_tensor("w", TensorProto.FLOAT, [4, 3], range(12)),
        helper.make_tensor("v", TensorProto.FLOAT, [1, 3], [1, 2, 3]),
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0]),
        helper.make_tensor("default", TensorProto.FLOAT, [1], [5]),
    ]
    optional = helper.make_tensor_value_info("default", TensorProto.FLOAT, [1])
    onnx = model(nodes, tensors, inputs=(X, optional)).SerializeToString()
    result = pack_any(onnx)
    for sign in (1, -1):
        assert same(onnx, result.onnx, {"x": np.full((2, 4), sign, np.float32)})
    assert "default" in {tensor.name for tensor in ModelProto.FromString(result.onnx).graph.initializer}


def test_sparse_tensors_stay() -> None:
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [2, 3])
    indices = helper.make_tensor("w_indices", TensorProto.INT64, [2], [0, 5])
    bias = helper.make_tensor("b", TensorProto.FLOAT, [3], [1, 2, 3])
    made = model([helper.make_node("Identity", ["x"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])], [bias])
    made.graph.node[0].CopyFrom(helper.make_node("MatMul", ["x", "w"], ["m"]))
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 3]))
    onnx = made.SerializeToString()
    result = pack_any(onnx)
    assert all(gate.passed for gate in result.gates.values())
    assert same(onnx, unpack(result.packed), {"x": np.eye(4, dtype=np.float32)})


def test_names_of_values_and_our_metadata_stay_and_other_metadata_goes() -> None:
    made = model([helper.make_node("Add", ["x", "four"], ["y"])], [helper.make_tensor("four", TensorProto.FLOAT, [4], [1] * 4)])
    made.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'fc1', 'add']")
    made.metadata_props.add(key="labels", value='["a"]')
    made.metadata_props.add(key="author", value="somebody")
    form = ModelProto.FromString(pack_any(made.SerializeToString()).onnx)
    assert [value.name for value in form.graph.output] == ["y"]
    assert {entry.key: entry.value for entry in form.metadata_props if entry.key != SEAL} == {"labels": '["a"]'}
    assert not form.graph.doc_string


def test_text_is_refused_by_name_and_never_packed_wrong() -> None:
    words = helper.make_tensor("words", TensorProto.STRING, [2], ["a", "b"])
    output = helper.make_tensor_value_info("y", TensorProto.STRING, [2])
    onnx = model([helper.make_node("Identity", ["words"], ["y"])], [words], inputs=(), outputs=(output,)).SerializeToString()
    with pytest.raises(UserError, match=r'E121.*"words" has type STRING'):
        pack_any(onnx)


def test_a_form_with_other_outputs_fails_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    other = dense(TensorProto.FLOAT, [*range(11), 12])
    monkeypatch.setattr("mirabelle.artifact.foreign.canonical", lambda *_: canonical(other, {}))
    gate = pack_any(dense(TensorProto.FLOAT, [*range(12)]).SerializeToString()).gates["same_outputs"]
    assert not gate.passed
    assert gate.detail == 'output "y" differs'


def test_the_size_of_a_free_axis_is_given_or_found() -> None:
    wide = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "width"])
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [1])
    onnx = model([helper.make_node("Add", ["x", "one"], ["y"])], [one], inputs=(wide,)).SerializeToString()
    given, found = (pack_any(onnx, sizes).gates["same_outputs"] for sizes in ([GivenInput((7,))], ()))
    assert given.passed
    assert given.detail == "1 outputs are equal to the bit"
    assert found.passed
    assert found.detail == "1 outputs are equal to the bit (sizes found by trial: x 2,16)"


@pytest.mark.parametrize("dynamo", [True, False])
def test_what_torch_exports_is_packed(dynamo: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).eval()
    file, example = io.BytesIO(), torch.randn(2, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(net, (example,), file, dynamo=True, verbose=False)
        else:
            torch.onnx.export(net, (example,), file, dynamo=False, opset_version=17)
    result = pack_any(file.getvalue())
    assert all(gate.passed for gate in result.gates.values())
    assert same(
        file.getvalue(),
        unpack(result.packed),
        dict.fromkeys(default_runtime().load(result.onnx, 1).input_names, example.numpy()),
    )
