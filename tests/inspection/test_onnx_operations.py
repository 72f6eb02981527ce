"""Layers and multiply-accumulates of ONNX graphs that no exporter of ours wrote."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from mirabelle import UserError
from mirabelle.inspection import layers_of_onnx
from mirabelle.task.batch import Batch

FLOAT = TensorProto.FLOAT


def ones(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def value(name: str, *shape: int | str | None) -> object:
    return helper.make_tensor_value_info(name, FLOAT, shape)


def file_of(nodes: list[NodeProto], tensors: list[TensorProto], inputs: list[object], output: str = "y") -> bytes:
    graph = helper.make_graph(nodes, "graph", inputs, [helper.make_tensor_value_info(output, FLOAT, None)], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def told(onnx: bytes, example: Batch | None = None) -> list[tuple[str, int, int | None]]:
    return [(layer.kind, layer.parameters, layer.macs) for layer in layers_of_onnx(onnx, example)]


def branch(name: str, widths: list[int]) -> GraphProto:
    """Matrix products of 8 numbers to these widths, with the weights inside the branch."""
    tensors = [ones(f"{name}.{k}", a, b) for k, (a, b) in enumerate(zip([8, *widths], widths, strict=False))]
    names = ["x", *(f"{name}_{k}" for k in range(len(widths)))]
    nodes = [helper.make_node("MatMul", [names[k], f"{name}.{k}"], [names[k + 1]]) for k in range(len(widths))]
    return helper.make_graph(nodes, name, [], [value(names[-1], None, widths[-1])], tensors)


@pytest.mark.parametrize(("threshold", "macs"), [(-1e9, [0, 0, 24]), (1e9, [64, 24, 0])])
def test_the_branch_that_is_taken_counts_and_both_are_listed(threshold: float, macs: list[int]) -> None:
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "threshold"], ["large"]),
        helper.make_node("If", ["large"], ["y"], then_branch=branch("short", [3]), else_branch=branch("long", [8, 3])),
    ]
    limit = numpy_helper.from_array(np.array(threshold, np.float32), "threshold")
    layers = told(file_of(nodes, [limit], [value("x", "batch", 8)]))
    assert [layer[2] for layer in layers] == macs
    assert [layer[1] for layer in layers] == [64, 24, 24]  # the file has the attribute else_branch first


def test_every_turn_of_a_loop_counts() -> None:
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["state", "loop.weight"], ["next"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            value("state", None, 8),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), value("next", None, 8)],
        [ones("loop.weight", 8, 8)],
    )
    turns = numpy_helper.from_array(np.array(4, np.int64), "turns")
    assert told(
        file_of([helper.make_node("Loop", ["turns", "", "x"], ["y"], body=inner)], [turns], [value("x", "batch", 8)])
    ) == [("MatMul", 64, 4 * 64)]


def test_weights_may_be_constants_or_computed_from_what_is_stored() -> None:
    constant = helper.make_node("Constant", [], ["made"], value=ones("", 8, 6))
    nodes = [
        constant,
        helper.make_node("MatMul", ["x", "made"], ["a"]),
        helper.make_node("Concat", ["left", "right"], ["joined"], axis=1),
        helper.make_node("MatMul", ["joined", "square"], ["folded"]),
        helper.make_node("MatMul", ["a", "folded"], ["y"]),
    ]
    tensors = [ones("left", 6, 2), ones("right", 6, 2), ones("square", 4, 4)]
    assert told(file_of(nodes, tensors, [value("x", "batch", 8)])) == [("MatMul", 48, 48), ("MatMul", 24 + 16, 24)]


def test_products_of_activations_and_grouped_and_transposed_convolutions() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "grouped"], ["c"], group=2, pads=[1, 1, 1, 1]),
        helper.make_node("ConvTranspose", ["c", "up"], ["t"], strides=[2, 2]),
        helper.make_node("MatMul", ["t", "t"], ["y"]),
    ]
    tensors = [ones("grouped", 6, 2, 3, 3), ones("up", 6, 3, 2, 2)]
    assert told(file_of(nodes, tensors, [value("x", "batch", 4, 5, 5)])) == [
        ("Conv", 108, 25 * 6 * 2 * 9),
        ("ConvTranspose", 72, 25 * 6 * 3 * 4),
        ("MatMul", 0, 3 * 10 * 10 * 10),
    ]


def test_a_file_for_one_batch_is_counted_by_sample_and_free_axes_need_an_example() -> None:
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y"])]
    assert told(file_of(nodes, [ones("weight", 8, 3)], [value("x", 5, 8)])) == [("MatMul", 24, 24)]
    free = file_of(nodes, [ones("weight", 8, 3)], [value("x", "batch", "length", 8)])
    assert told(free) == [("MatMul", 24, None)]
    assert told(free, Batch(torch.ones(2, 7, 8), torch.zeros(2))) == [("MatMul", 24, 7 * 24)]
    with pytest.raises(UserError) as caught:
        layers_of_onnx(free, Batch(torch.ones(2, 7, 9), torch.zeros(2)))
    assert caught.value.code == "E131"
