"""Torch's fast path of encoder layers computes another function with some masks, which is told before any work."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.model.fast_path import check_fast_path
from mirabelle.task.batch import Batch

LENGTH = 6
CAUSAL = nn.Transformer.generate_square_subsequent_mask(LENGTH)
BY_DISTANCE = -0.5 * (torch.arange(float(LENGTH))[:, None] - torch.arange(float(LENGTH))).abs()


class Masked(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.mask = nn.Buffer(mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, src_mask=self.mask).mean(1)


def checked(model: nn.Module) -> None:
    torch.manual_seed(0)
    check_fast_path(model, Batch(torch.randn(2, LENGTH, 8), torch.tensor([0, 1])))


def test_a_bias_that_torch_ignores_in_eval_mode_is_refused() -> None:
    model = Masked(BY_DISTANCE).train()
    with pytest.raises(
        UserError, match=r'E121.*"layer" is given a mask .* torch takes them for −inf, and outputs differ by'
    ) as told:
        checked(model)
    assert "set_fastpath_enabled(False)" in told.value.remedy
    assert model.training
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("mask", [CAUSAL, CAUSAL == 0, torch.zeros(LENGTH, LENGTH)], ids=["causal", "truth values", "zeros"])
def test_masks_that_leave_places_out_are_taken(mask: Tensor) -> None:
    checked(Masked(mask if mask.is_floating_point() else ~mask))


def test_a_bias_is_taken_without_the_fast_path() -> None:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        checked(Masked(BY_DISTANCE))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
