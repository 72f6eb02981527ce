"""Large tensors are read where they lie in the bytes of a file, with the same results."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mirabelle.runtime import views
from mirabelle.runtime.export import export
from mirabelle.runtime.onnxruntime import OnnxRuntime
from mirabelle.task.batch import Batch


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 16), nn.Linear(16, 4)).eval()


@pytest.fixture
def onnx() -> bytes:
    return export(network(), Batch(torch.randn(2, 3, 8, 8), torch.zeros(2)))


@pytest.fixture
def every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_WORTH", 0)
    monkeypatch.setattr(views, "_LARGE", 1)


def outputs(onnx: bytes) -> np.ndarray:
    session = OnnxRuntime().load(onnx, 1)
    session.release()
    return np.asarray(session.run(session.feed(torch.ones(2, 3, 8, 8)))[0])


def test_views_are_the_tensors_of_the_file_without_a_copy(onnx: bytes, every_tensor: None) -> None:
    found = views.viewed(onnx)
    model = network()
    assert all(np.array_equal(found.tensors[name], tensor.detach().numpy()) for name, tensor in model.named_parameters())
    assert all(not array.flags.owndata for array in found.tensors.values())
    assert len(found.proto.SerializeToString()) < 2000 < len(onnx)


def test_a_session_on_views_computes_the_same(onnx: bytes, request: pytest.FixtureRequest) -> None:
    due = outputs(onnx)
    request.getfixturevalue("every_tensor")
    np.testing.assert_array_equal(outputs(onnx), due)


def test_operators_are_timed_on_views(onnx: bytes, every_tensor: None) -> None:
    runtime = OnnxRuntime()
    times = runtime.operator_milliseconds(onnx, {"input": np.ones((1, 3, 8, 8), np.float32)}, threads=1, runs=3)
    assert times
    assert all(len(values) == 3 for values in times.values())


def test_a_small_file_is_read_whole(onnx: bytes) -> None:
    found = views.viewed(onnx)
    assert not found.tensors
    assert found.proto.SerializeToString(deterministic=True) == onnx


def test_a_file_whose_fields_are_in_another_order_is_read_whole(onnx: bytes, every_tensor: None) -> None:
    found = views.viewed(onnx + b"\x12\x01x")  # the producer once more
    assert not found.tensors
    assert found.proto.producer_name == "x"
