"""Moments that are added up batch by batch are those of NumPy over all rows at once; so is the least-squares fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mirabelle.calibration.moments import Moments, damped, least_squares

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((2, 50, 4)) @ GENERATOR.standard_normal((2, 4, 4)) + 3.0  # groups, rows, columns
Y = GENERATOR.standard_normal((2, 50, 3)) - X[:, :, :3]


def added(x: np.ndarray, y: np.ndarray | None, rows: int, **settings: bool) -> Moments:
    moments = Moments(**settings)
    for start in range(0, x.shape[1], rows):
        part = slice(start, start + rows)
        moments.add(torch.from_numpy(x[:, part]), None if y is None else torch.from_numpy(y[:, part]))
    return moments


# 1e-12: sums of 50 numbers of size 10 in float64, in another order.
@pytest.mark.parametrize("rows", [1, 7, 50])
def test_centred_moments_are_numpy_s_covariances_whatever_the_batches(rows: int) -> None:
    gram, cross = added(X, None, rows, centred=True), added(X, Y, rows, centred=True)
    variances = added(X, None, rows, centred=True, diagonal=True)
    for group in range(2):
        both = np.cov(np.hstack([X[group], Y[group]]).T, bias=True)
        np.testing.assert_allclose(gram.mean()[group], both[:4, :4], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(cross.mean()[group], both[:4, 4:], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(variances.mean()[group], X[group].var(0), rtol=1e-12)
    np.testing.assert_allclose(cross.means[0], X.mean(1, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(cross.means[1], Y.mean(1, keepdims=True), rtol=1e-12)
    assert cross.rows == 50


@pytest.mark.parametrize("rows", [1, 7, 50])
def test_moments_about_zero_are_mean_products(rows: int) -> None:
    np.testing.assert_allclose(added(X, Y, rows, centred=False).mean(), X.transpose(0, 2, 1) @ Y / 50, rtol=1e-12)
    np.testing.assert_allclose(added(X, None, rows, centred=False, diagonal=True).mean(), (X**2).mean(1), rtol=1e-12)


def test_a_large_mean_costs_no_digits() -> None:
    far = X + 1e8
    difference = added(far, None, 7, centred=True).mean().numpy() - added(far - 1e8, None, 7, centred=True).mean().numpy()
    # Rounding of the means alone, 1e8 · 2⁻⁵³ ≈ 1e-8 a value; a difference of mean squares would be off by 1e16 · 2⁻⁵³ ≈ 1.
    assert np.abs(difference).max() < 1e-6


def test_rows_may_keep_their_own_precision_and_an_empty_part_adds_nothing() -> None:
    moments = Moments(centred=True, dtype=None)
    moments.add(torch.zeros(1, 0, 2))
    moments.add(torch.tensor([[[1.0, 2.0]]], dtype=torch.bfloat16))
    assert moments.mean().dtype == torch.float32
    assert moments.rows == 1
    assert torch.equal(moments.mean(), torch.zeros(1, 2, 2))


@pytest.mark.parametrize("centred", [True, False])
def test_least_squares_from_moments_is_numpy_s(centred: bool) -> None:
    gram, cross = added(X, None, 7, centred=centred), added(X, Y, 7, centred=centred)
    found = least_squares(gram.mean(), cross.mean(), 1e-14)
    for group in range(2):
        x, y = (data[group] - centred * data[group].mean(0) for data in (X, Y))
        # Normal equations square the condition of X, about 100 here; the ridge is below rounding.
        np.testing.assert_allclose(found[group], np.linalg.lstsq(x, y, rcond=None)[0], rtol=1e-9, atol=1e-9)


def test_a_ridge_is_a_share_of_the_mean_of_the_diagonal() -> None:
    gram, cross = added(X, None, 50, centred=False).mean(), added(X, Y, 50, centred=False).mean()
    for group in range(2):
        weight = 0.1 * np.trace(gram[group].numpy()) / 4
        stacked = np.vstack([X[group] / np.sqrt(50), np.sqrt(weight) * np.eye(4)])
        due = np.vstack([Y[group] / np.sqrt(50), np.zeros((4, 3))])
        np.testing.assert_allclose(
            least_squares(gram, cross, 0.1)[group], np.linalg.lstsq(stacked, due, rcond=None)[0], rtol=1e-9, atol=1e-9
        )
    assert torch.equal(damped(torch.zeros(1, 2, 2), 0.1), torch.eye(2)[None])
