"""What `autocast` computes in bfloat16, and what it leaves in float32 since torch gives wrong gradients there."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mirabelle.model.precision import autocast

_CONVOLUTIONS = {
    "conv1d": (functional.conv1d, 1), "conv2d": (functional.conv2d, 2), "conv3d": (functional.conv3d, 3),
    "conv_transpose1d": (functional.conv_transpose1d, 1), "conv_transpose2d": (functional.conv_transpose2d, 2),
    "conv_transpose3d": (functional.conv_transpose3d, 3),
}  # fmt: skip


def _gradient(function: Callable[..., Tensor], inputs: Tensor, weight: Tensor, precision: str, **settings: Any) -> Tensor:
    weight = weight.clone().requires_grad_()
    spoiled = [torch.full((count,), torch.nan) for count in (weight.numel() // 2, weight.numel(), 20_000)]
    del spoiled  # memory that is not written shows
    with autocast(precision):
        outputs = function(inputs, weight, **settings)
    outputs.float().square().sum().backward()
    assert weight.grad is not None
    return weight.grad


@pytest.mark.parametrize("name", _CONVOLUTIONS)
def test_gradients_of_convolutions_are_right_at_every_size(name: str) -> None:
    torch.manual_seed(0)
    function, spatial = _CONVOLUTIONS[name]
    layouts = (torch.contiguous_format, torch.channels_last)[: 1 + (spatial == 2)]
    sizes = itertools.product((1, 2, 4), (2, 3), (1, 2, 3), layouts)
    for size, kernel, stride, layout in sizes:
        inputs, weight = torch.randn(4, 16, *(size,) * spatial), torch.randn(16, 16, *(kernel,) * spatial)
        if spatial == 2:
            inputs, weight = inputs.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
        settings = {"stride": stride, "padding": kernel // 2}
        if "transpose" in name and (size - 1) * stride - 2 * (kernel // 2) + kernel < 1:
            continue
        right = _gradient(function, inputs, weight, "float32", **settings)
        found = _gradient(function, inputs, weight, "bfloat16", **settings)
        assert torch.allclose(found, right, rtol=0, atol=0.05 * float(right.abs().max())), (size, kernel, stride)


def test_other_convolutions_and_products_are_in_bfloat16() -> None:
    images, kernel = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3)
    with autocast("bfloat16"):
        assert functional.conv2d(images, kernel, stride=2).dtype == torch.bfloat16
        assert functional.conv2d(images, kernel, None, [2, 5], 1).dtype == torch.float32
        assert functional.linear(images, torch.randn(2, 4)).dtype == torch.bfloat16
    with autocast("float32"):
        assert functional.conv2d(images, kernel).dtype == torch.float32
