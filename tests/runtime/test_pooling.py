"""Adaptive pooling goes out to ONNX, whatever the sizes."""

from __future__ import annotations

import numpy as np
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


def test_the_positions_of_maxima_are_refused() -> None:
    with pytest.raises(UserError) as told:
        export(Positions(), Batch(torch.randn(2, 2, 5, 5), torch.zeros(2)))
    assert told.value.code == "E121"
