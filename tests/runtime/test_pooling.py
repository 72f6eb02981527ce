"""Adaptive pooling goes out to ONNX, whatever the sizes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from mirabelle.errors import UserError
from mirabelle.runtime.export import export
from mirabelle.task.batch import Batch


class Positions(nn.Module):
    def forward(self, x):
        values, positions = nn.functional.adaptive_max_pool2d(x, 2, return_indices=True)
        return values + positions


@pytest.mark.parametrize(
    ("pool", "size"),
    [
        (nn.AdaptiveMaxPool1d(3), (7,)),
        (nn.AdaptiveMaxPool2d((3, 2)), (7, 9)),
        (nn.AdaptiveMaxPool2d((None, 1)), (5, 6)),
        (nn.AdaptiveMaxPool3d((2, 3, 1)), (5, 7, 4)),
        (nn.AdaptiveAvgPool3d((2, 3, 4)), (5, 7, 4)),
    ],
)
def test_adaptive_pooling_is_exported(pool: nn.Module, size: tuple[int, ...]) -> None:
    x = torch.randn(5, 2, *size)
    session = onnxruntime.InferenceSession(export(nn.Sequential(pool), Batch(x[:2], torch.zeros(2))))
    np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0], pool(x).numpy(), atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_layout_of_memory_leaves_no_trace_in_the_file(kernel: int) -> None:
    """With one input channel or kernels of 1, tensors are contiguous, and their strides still tell of channels-last."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, kernel), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = torch.randn(2, 1, 6, 6)
    plain = export(model, Batch(x, torch.zeros(2)))
    last = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    strides = [parameter.stride() for parameter in last.parameters()]
    assert export(last, Batch(x.contiguous(memory_format=torch.channels_last), torch.zeros(2))) == plain
    assert [parameter.stride() for parameter in last.parameters()] == strides
    nodes = [node.op_type for node in onnx.load_from_string(plain).graph.node]
    assert nodes == ["Conv", "Relu", "Conv", "ReduceMean", "Reshape"]


def test_the_positions_of_maxima_are_refused() -> None:
    with pytest.raises(UserError) as told:
        export(Positions(), Batch(torch.randn(2, 2, 5, 5), torch.zeros(2)))
    assert told.value.code == "E121"
