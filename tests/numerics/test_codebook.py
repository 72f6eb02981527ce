"""One-dimensional k-means: the optimum is that of a search over all partitions, and never worse than scikit-learn's."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from sklearn.cluster import KMeans

from mirabelle.numerics import codebook
from mirabelle.numerics.codebook import codebook_of, lloyd, nearest_entries, optimum


def error(values: np.ndarray, book: np.ndarray) -> float:
    return float(((values - book[nearest_entries(values, book)]) ** 2).sum())


@pytest.mark.parametrize("entries", [1, 2, 3, 5])
def test_the_exact_codebook_is_the_best_of_all_partitions(entries: int) -> None:
    draw = np.random.default_rng(entries)
    values = np.sort(np.concatenate([draw.normal(size=6), draw.normal(5, 0.1, size=5)]))
    partitions = (np.split(values, cuts) for cuts in combinations(range(1, len(values)), entries - 1))
    best = min(sum(float(((part - part.mean()) ** 2).sum()) for part in parts) for parts in partitions)
    assert error(values, codebook_of(values, entries)) == pytest.approx(best, rel=1e-9)


def test_counts_are_weights() -> None:
    distinct, counts = np.array([0.0, 1.0, 2.0, 7.0]), np.array([5.0, 1.0, 1.0, 3.0])
    np.testing.assert_allclose(optimum(distinct, counts, 2), codebook_of(np.repeat(distinct, counts.astype(int)), 2))


@pytest.mark.parametrize("entries", [4, 16])
def test_the_exact_codebook_is_not_worse_than_that_of_scikit_learn(entries: int) -> None:
    values = np.random.default_rng(0).laplace(size=3000)
    other = KMeans(entries, n_init=3, random_state=0).fit(values[:, None])
    assert error(values, codebook_of(values, entries)) <= other.inertia_ * (1 + 1e-9)


def test_lloyd_from_a_start_is_that_of_scikit_learn() -> None:
    values = np.random.default_rng(1).normal(size=2000)
    first = np.linspace(values.min(), values.max(), 8)
    other = KMeans(8, init=first[:, None], n_init=1, max_iter=1000, tol=0).fit(values[:, None])
    np.testing.assert_allclose(codebook_of(values, 8, "linear"), np.sort(other.cluster_centers_[:, 0]), atol=1e-6)


@pytest.mark.parametrize("start", ["linear", "density", "random"])
def test_no_start_is_better_than_the_optimum(start: codebook.Start) -> None:
    values = np.random.default_rng(2).standard_t(3, size=5000)
    found = codebook_of(values, 16, start, seed=3)
    assert np.all(np.diff(found) > 0)
    assert error(values, codebook_of(values, 16)) <= error(values, found) * (1 + 1e-9)


def test_many_values_are_joined_first_and_lose_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).laplace(size=6000)
    exact = error(values, codebook_of(values, 16))
    monkeypatch.setattr(codebook, "MOST_DISTINCT", 500)
    assert exact <= error(values, codebook_of(values, 16)) <= 1.001 * exact


def test_values_far_from_zero_keep_their_digits() -> None:
    near = np.random.default_rng(5).normal(size=200)
    np.testing.assert_allclose(codebook_of(near + 1e6, 5) - 1e6, codebook_of(near, 5), atol=1e-6)


@pytest.mark.parametrize("start", ["exact", "linear", "density", "random"])
def test_a_codebook_has_no_value_without_numbers(start: codebook.Start) -> None:
    assert codebook_of([3.0] * 9, 4, start).tolist() == [3.0]
    assert codebook_of([1.0, 2.0, 1.0], 2, start).tolist() == [1.0, 2.0]
    found = codebook_of(np.concatenate([np.linspace(0, 1e-3, 50), [1.0]]), 8, start)
    assert np.bincount(nearest_entries(np.concatenate([np.linspace(0, 1e-3, 50), [1.0]]), found)).min() > 0


def test_a_value_of_no_number_is_left_out() -> None:
    assert lloyd(np.array([0.0, 1.0]), np.ones(2), np.array([0.0, 0.9, 5.0])).tolist() == [0.0, 1.0]
