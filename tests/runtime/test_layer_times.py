"""The nodes of an exported graph are counted to their layers, before and after a quantization."""

from __future__ import annotations

import torch
from onnx import ModelProto
from torch import nn

from mirabelle import Run, Task, quantize
from mirabelle.runtime.export import export
from mirabelle.runtime.layer_times import layer_milliseconds, owners_of
from mirabelle.runtime.runtime import default_runtime


def network() -> tuple[nn.Module, Task]:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    x, y = torch.randn(8, 1, 8, 8), torch.arange(8) % 3
    return nn.Sequential(first, nn.Flatten(), nn.Linear(288, 3)).eval(), Task(train=(x, y), test=(x, y))


def test_folded_norms_activations_and_conversions_count_to_their_layer(run: Run) -> None:
    model, task = network()
    layers = ["0.0", "0.1", "2"]  # a static quantization replaces the norm, too: it is folded
    for form in (model, quantize.Static()(model, task, run)):
        onnx = export(form, task.example())
        graph = ModelProto.FromString(onnx).graph
        owners = owners_of(graph, layers)
        kinds = {node.output[0]: node.op_type for node in graph.node}
        assert {kinds[name]: owner for name, owner in owners.items() if kinds[name] in ("Conv", "Gemm")} == {
            "Conv": "0.0",
            "Gemm": "2",
        }
        feed = {"input": task.example().inputs.numpy()}
        times = layer_milliseconds(default_runtime(), onnx, feed, layers, threads=1, whole_ms=1e3)
        assert set(times) == {"0.0", "2"}
        assert min(times.values()) > 0


def test_a_profile_takes_no_time_from_layers(run: Run) -> None:
    model, task = network()
    onnx = export(model, task.example())
    feed = {"input": task.example().inputs.numpy()}
    assert sum(layer_milliseconds(default_runtime(), onnx, feed, ["0.0", "2"], threads=1, whole_ms=0.0).values()) < 0.1
