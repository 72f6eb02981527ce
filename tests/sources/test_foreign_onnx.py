"""ONNX files as strangers have them: states, sizes that few graphs take, batches elsewhere."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mirabelle.errors import UserError
from mirabelle.model.state import copied
from mirabelle.sources.models.onnx_graph import module_from_onnx
from mirabelle.sources.models.onnx_graph.values import kind_of, simplified

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def written(folder: Path, nodes: list[NodeProto], inputs: dict[str, list], tensors: dict[str, list], rank: int = 2) -> Path:
    """A file of a graph with floating-point inputs and outputs."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, FLOAT, sizes) for name, sizes in inputs.items()],
        [helper.make_tensor_value_info("y", FLOAT, [None] * rank)],
        [
            numpy_helper.from_array(
                np.asarray(values, dtype=np.float32 if isinstance(np.asarray(values).flat[0], float) else np.int64), name
            )
            for name, values in tensors.items()
        ],
    )
    path = folder / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString())
    return path


@pytest.mark.parametrize(
    "sizes",
    [
        {"x": ["n", 4], "state": [2, "n", 4]},
        {"x": ["n", 4], "state": [2, 1, 4]},
        {"x": [1, 4], "state": [2, 1, 4]},
        {"x": ["n", 4], "state": []},
    ],
)
def test_a_state_without_the_batch_first_is_refused_with_all_inputs(tmp_path: Path, sizes: dict[str, list]) -> None:
    path = written(tmp_path, [helper.make_node("Add", ["x", "state"], ["y"])], sizes, {})
    with pytest.raises(UserError, match=r'E121.*which "state" does not have: "x" \((n|1),4\) float, "state" \(.*\n.*pack'):
        module_from_onnx(path)


def test_a_file_that_takes_few_sizes_is_compared_at_one_of_them(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["parts"]), helper.make_node("MatMul", ["parts", "w"], ["y"])]
    path = written(tmp_path, nodes, {"x": ["n", "width"]}, {"shape": [0, -1, 32], "w": [[1.0, 2.0]] * 32}, rank=3)
    module = module_from_onnx(path)
    assert module.compared_at == "x 2,32"


def test_a_pool_that_leaves_nothing_is_not_the_size_to_compare_at(tmp_path: Path) -> None:
    """ONNX Runtime computes with empty maps, PyTorch does not."""
    nodes = [
        helper.make_node("MaxPool", ["x"], ["pooled"], kernel_shape=[20, 20], strides=[20, 20]),
        helper.make_node("GlobalAveragePool", ["pooled"], ["y"]),
    ]
    assert module_from_onnx(written(tmp_path, nodes, {"x": ["n", 3, "h", "w"]}, {}, rank=4)).compared_at == "x 2,3,32,32"


def test_an_output_without_the_batch_first_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0, 2])]
    with pytest.raises(UserError, match=r'E121.*"y" of the ONNX graph has its batch not in its first axis: \(4, 2, 3\) for 2'):
        module_from_onnx(written(tmp_path, nodes, {"x": [1, 4, 3]}, {}, rank=3))


def test_a_branch_that_each_sample_would_choose_for_itself_is_refused(tmp_path: Path) -> None:
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(kind, ["x"], [name])], name, [], [helper.make_tensor_value_info(name, FLOAT, [1, 4])]
        )
        for name, kind in (("then", "Neg"), ("else", "Abs"))
    }
    nodes = [
        helper.make_node("ReduceMax", ["x", "axes"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], **branches),
    ]
    with pytest.raises(UserError, match=r'E121.*If ".*" is not supported with a condition for each sample'):
        module_from_onnx(written(tmp_path, nodes, {"x": [1, 4]}, {"axes": [1], "zero": [0.0]}))


def test_a_copy_of_a_module_computes_with_constants_of_the_same_types(tmp_path: Path) -> None:
    """States of zeros from tf2onnx: a floating-point number, expanded to the batch."""
    nodes = [
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Expand", ["zero", "size"], ["zeros"]),
        helper.make_node("Concat", ["zeros", "x"], ["y"], axis=1),
    ]
    module = module_from_onnx(written(tmp_path, nodes, {"x": ["n", 4]}, {"zero": [0.0]}))
    state = simplified(torch.tensor(0.5), numbers=True)
    for copy_of in (copied(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copy_of(torch.ones(3, 4)), module(torch.ones(3, 4)))
    for one in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert kind_of(one) is torch.float32
        assert one.tolist() == state.tolist()
