"""Tensors that layers share are in the file once, and ONNX Runtime computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from mirabelle.calibration.ranges import Range
from mirabelle.quantize.layers import StaticLayer, TokenLayer, WeightLayer
from mirabelle.runtime.canonical import canonical
from mirabelle.runtime.export import export
from mirabelle.runtime.runtime import default_runtime
from mirabelle.task.batch import Batch

RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(40, 24)).astype(np.float32)


def graph_of(nodes: list[Any], tensors: dict[str, Any], *, inputs: tuple[str, ...] = ()) -> ModelProto:
    """A graph of an input x, (batch, 40), and outputs y0, y1, …"""
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 40])]
    given += [helper.make_tensor_value_info(name, TensorProto.FLOAT, tensors[name].shape) for name in inputs]
    made = sorted(name for node in nodes for name in node.output if name.startswith("y"))
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in made]
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "g", given, results, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def outputs_of(onnx: bytes, x: Any) -> list[Any]:
    return list(default_runtime().load(onnx, threads=1).run({"x": x}))


def stored(onnx: bytes) -> list[tuple[int, ...]]:
    return [tuple(tensor.dims) for tensor in ModelProto.FromString(onnx).graph.initializer]


def test_equal_and_transposed_copies_are_stored_once() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("MatMul", ["h", "b"], ["i"]),
        helper.make_node("MatMul", ["i", "c"], ["y0"]),
        helper.make_node("Add", ["y0", "short"], ["y1"]),
        helper.make_node("Mul", ["y1", "again"], ["y2"]),
    ]
    bias = np.arange(24, dtype=np.float32)
    tensors = {"a": MATRIX, "b": np.ascontiguousarray(MATRIX.T), "c": MATRIX.copy(), "short": bias, "again": bias.copy()}
    given = graph_of(nodes, tensors).SerializeToString()
    merged = canonical(ModelProto.FromString(given), {})
    assert stored(merged) == [(40, 24), (24,)]
    assert canonical(ModelProto.FromString(merged), {}) == merged
    x = RNG.normal(size=(3, 40)).astype(np.float32)
    for one, other in zip(outputs_of(given, x), outputs_of(merged, x), strict=True):
        assert np.array_equal(one, other)


def test_what_is_not_equal_stays_apart() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["y0"]),
        helper.make_node("MatMul", ["x", "nearly"], ["y1"]),
        helper.make_node("Reshape", ["y0", "flat"], ["y2"]),
        helper.make_node("Add", ["y0", "long"], ["y3"]),
        helper.make_node("Add", ["y0", "default"], ["y4"]),  # a caller may give another value
    ]
    nearly = MATRIX.copy()
    nearly[0, 0] = np.nextafter(nearly[0, 0], np.float32(9))
    tensors = {"a": MATRIX, "nearly": nearly, "flat": np.array([-1]), "long": np.array([[-1]], np.float32)}
    tensors["default"] = tensors["long"].copy()
    model = graph_of(nodes, tensors, inputs=("default",))
    assert sorted(stored(canonical(model, {}))) == sorted(array.shape for array in tensors.values())


def test_numbers_in_another_shape_are_stored_once() -> None:
    scale = RNG.normal(size=300).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["column", "chosen"], ["g"]),
        helper.make_node("MatMul", ["x", "g"], ["y0"]),
        helper.make_node("Mul", ["y0", "row"], ["y1"]),
        helper.make_node("Add", ["y1", "few"], ["y2"]),
        helper.make_node("Add", ["y2", "column of few"], ["y3"]),
    ]
    few = np.ones(4, np.float32)
    tensors = {"column": scale[:, None], "chosen": np.arange(40), "row": scale, "few": few[:1], "column of few": few[:1, None]}
    given = graph_of(nodes, tensors).SerializeToString()
    merged = canonical(ModelProto.FromString(given), {})
    assert stored(merged) == [(300, 1), (1,), (40,), (1,), (1, 1)]  # the second is the shape of the row
    assert canonical(ModelProto.FromString(merged), {}) == merged
    x = RNG.normal(size=(3, 40)).astype(np.float32)
    for one, other in zip(outputs_of(given, x), outputs_of(merged, x), strict=True):
        assert np.array_equal(one, other)


class Chain(nn.Module):
    """A table and layers, which may share their weights."""

    def __init__(self, table: nn.Module, *layers: nn.Module) -> None:
        super().__init__()
        self.table, self.layers = table, nn.ModuleList(layers)

    def forward(self, ids: Tensor) -> Tensor:
        values: Tensor = self.table(ids)
        for layer in self.layers:
            values = torch.tanh(layer(values))
        return values


def quantized(kinds: str, dense: nn.Module) -> list[nn.Module]:
    """Layers of one weight by letter: d for dynamic, s for static, w for weights alone."""
    made = {
        "d": lambda: TokenLayer.quantized(dense, 8),
        "s": lambda: StaticLayer.quantized(dense, Range(-1.0, 1.0), weight_bits=8),
        "w": lambda: WeightLayer.quantized(dense, 8),
    }
    return [made[kind]() for kind in kinds]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kinds", ["w", "d", "dd", "ddd", "ss", "ds", "ws", "wd", "dsd"])
def test_codes_of_several_layers_are_stored_once(kinds: str, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirabelle.runtime.onnxruntime.int8_saturates", lambda: exact)
    torch.manual_seed(0)
    table, layer = nn.Embedding(40, 40), nn.Linear(40, 40)
    with torch.no_grad():
        table.weight.mul_(0.2)  # so that no tanh saturates, and no value leaves the range of a static layer
    layer.weight = table.weight
    model = Chain(WeightLayer.quantized(table, 8), *quantized(kinds, layer)).eval()
    ids = torch.randint(0, 40, (6, 5))
    onnx = export(model, Batch(ids, torch.zeros(6)))
    assert stored(onnx).count((40, 40)) == 1
    with torch.no_grad():
        due = model(ids).numpy()
    given = default_runtime().load(onnx, threads=1).outputs_of([Batch(ids, torch.zeros(6))])[0]
    gaps = np.abs(np.asarray(given) - due)
    assert (gaps < 1e-5).mean() > 0.95
    assert gaps.max() < 2e-2  # a rounding tie that falls the other way


def test_a_layer_that_runs_several_times_runs_with_exact_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirabelle.runtime.onnxruntime.int8_saturates", lambda: True)
    torch.manual_seed(0)
    layer = TokenLayer.quantized(nn.Linear(40, 40), 8)
    model = Chain(nn.Embedding(40, 40), layer, layer, layer).eval()
    batch = Batch(torch.randint(0, 40, (6, 5)), torch.zeros(6))
    given = default_runtime().load(export(model, batch), threads=1).outputs_of([batch])[0]
    with torch.no_grad():
        assert np.abs(np.asarray(given) - model(batch.inputs).numpy()).max() < 1e-5
