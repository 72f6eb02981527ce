"""Tensors to arrays and bytes, and draws that leave no trace."""

from __future__ import annotations

import numpy as np
import torch

from mirabelle.numerics.arrays import bytes_of, to_numpy
from mirabelle.numerics.draws import generator_from, global_draws


def test_an_array_shares_the_memory_of_a_tensor_that_needs_a_gradient() -> None:
    tensor = torch.zeros(2, 3, requires_grad=True)
    to_numpy(tensor)[0, 1] = 4.0
    assert tensor[0, 1].item() == 4.0


def test_bytes_do_not_depend_on_the_layout_and_hold_types_that_numpy_does_not_know() -> None:
    tensor = torch.arange(24, dtype=torch.float32).reshape(1, 2, 3, 4)
    assert bytes_of(tensor.contiguous(memory_format=torch.channels_last)) == np.arange(24, dtype=np.float32).tobytes()
    assert bytes_of(torch.tensor([1.0], dtype=torch.bfloat16)) == b"\x80\x3f"
    assert bytes_of(torch.zeros(0, 3)) == b""


def test_draws_follow_from_the_seed_and_the_global_generator_goes_on_as_before() -> None:
    before = torch.get_rng_state()
    with global_draws(3):
        drawn = torch.rand(4)
    with global_draws():
        torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn, torch.rand(4, generator=generator_from(3)))
