"""Codes in groups: nearest values by brute force, ranges that hold 0, groups that do not divide a row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mirabelle.numerics.group_codes import Grid, decoded, nearest


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zero_points", [False, True])
def test_every_weight_has_the_nearest_code_of_its_group(bits: int, zero_points: bool) -> None:
    if bits == 8 and zero_points:
        return
    torch.manual_seed(0)
    weight = torch.randn(5, 22)
    found = nearest(weight, 8, Grid(bits, zero_points=zero_points))
    assert found.scale.shape == (5, 3)
    for row in range(5):
        for column in range(22):
            group = column // 8
            zero = 0 if found.zero_point is None else int(found.zero_point[row, group])
            low, high = -(2 ** (bits - 1)) + (bits == 8), 2 ** (bits - 1) - 1
            values = np.arange(low - zero, high - zero + 1) * float(found.scale[row, group])
            best = values[np.abs(values - float(weight[row, column])).argmin()]
            code = int(found.codes[row, column]) * float(found.scale[row, group])
            assert abs(code - float(weight[row, column])) <= abs(best - float(weight[row, column])) + 1e-6
            assert low <= int(found.codes[row, column]) + zero <= high
    error = (decoded(found.codes, found.scale, 8) - weight).square().sum()
    plain = nearest(weight, 8, Grid(bits, zero_points=zero_points, clipping=False))
    assert error <= (decoded(plain.codes, plain.scale, 8) - weight).square().sum()


def test_weights_of_one_sign_gain_by_zero_points_and_zeros_stay_zero() -> None:
    torch.manual_seed(0)
    weight = torch.rand(4, 64)
    weight[:, ::3] = 0
    errors = {}
    for zero_points in (False, True):
        found = nearest(weight, 16, Grid(4, zero_points=zero_points))
        assert bool((found.codes[:, ::3] == 0).all())
        errors[zero_points] = float((decoded(found.codes, found.scale, 16) - weight).square().sum())
    assert errors[True] < 0.4 * errors[False]  # half the step makes a quarter of the squared error


def test_scales_take_two_bytes_and_a_group_of_zeros_has_scale_one() -> None:
    weight = torch.cat([torch.randn(1, 16), torch.zeros(1, 16)])
    found = nearest(weight, 16, Grid(3))
    assert torch.equal(found.scale, found.scale.bfloat16().float())
    assert found.scale[1].item() == 1
    assert not found.codes[1].any()
