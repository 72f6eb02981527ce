"""Codebooks for weight sharing: one-dimensional k-means, exact or from a start as in Deep Compression.

All functions work on sorted values and their prefix sums, so that a cluster is an interval, and its sums are differences.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Start = Literal["exact", "linear", "density", "random"]
Values = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]

MOST_DISTINCT = 1 << 13  # exact k-means takes entries · values · log₂ values steps
_ROUNDS = 200  # of Lloyd's algorithm, which ends before in practice


def codebook_of(values: npt.ArrayLike, entries: int, start: Start = "exact", seed: int = 0) -> Values:
    """The values of a codebook with a small Σ_i min_c (v_i − c)², ascending.

    Args:
        values: finite numbers, any shape.
        entries: the largest number of values of the codebook, ≥ 1. It has fewer if some of them would be those of no number.
        start: "exact" finds the optimum: with up to 8,192 distinct numbers by dynamic programming; more are first joined with
            their neighbours into at most 8,192 sets, and the result is improved by Lloyd's algorithm on all numbers.
            Otherwise Lloyd's algorithm begins with values equally spaced between the smallest and the largest number
            ("linear"), with quantiles of the numbers ("density"), or with numbers drawn at random ("random").
        seed: of the draw.

    Example:
        >>> codebook_of([0.0, 0.25, 1.0, 1.5, 5.0], 3).tolist()
        [0.125, 1.25, 5.0]
        >>> codebook_of([2.0, 2.0], 4).tolist()
        [2.0]

    Source: Han et al. 2016, arXiv:1510.00149, section 3 (the starts); Grønlund et al. 2018, arXiv:1701.07204 (exact).
    """
    numbers = np.asarray(values, np.float64).ravel()
    distinct, counts = np.unique(numbers, return_counts=True)
    if len(distinct) <= entries:
        return distinct
    if start == "exact" and len(distinct) <= MOST_DISTINCT:
        return optimum(distinct, counts.astype(np.float64), entries)
    if start == "exact":
        first = _exact_on_sets(distinct, counts.astype(np.float64), entries)
    elif start == "linear":
        first = np.linspace(distinct[0], distinct[-1], entries)
    elif start == "density":
        first = np.quantile(numbers, (np.arange(entries) + 0.5) / entries)
    else:
        first = np.random.default_rng(seed).choice(distinct, entries, replace=False)
    return lloyd(distinct, counts.astype(np.float64), np.unique(first))


def nearest_entries(values: npt.ArrayLike, codebook: npt.ArrayLike) -> Places:
    """The place of the nearest value of an ascending codebook for each number; the lower one if two are equally near.

    Example:
        >>> nearest_entries([0.1, 0.5, 9.0], [0.0, 1.0]).tolist()
        [0, 0, 1]
    """
    book = np.asarray(codebook, np.float64)
    return np.searchsorted((book[1:] + book[:-1]) / 2, np.asarray(values, np.float64))


def optimum(distinct: Values, counts: Values, entries: int) -> Values:
    """The means of the clusters with the least Σ count · (value − mean)², found by dynamic programming.

    With D_k(i) = min_j D_{k−1}(j) + cost(j, i), the least cost of the first i values in k clusters, the best j does not
    decrease with i, so each of ⌈log₂ n⌉ halvings looks at about 2n pairs.

    Args:
        distinct: ascending numbers, (n,), n > entries.
        counts: how often each occurs, (n,).
        entries: the number of clusters.
    """
    sums = _Sums(distinct, counts)
    n = len(distinct)
    ends = np.arange(n + 1)
    least = sums.cost(np.zeros(n + 1, np.intp), ends)
    begins: list[Places] = []
    for _ in range(entries - 1):
        least, begin = _one_more(least, sums)
        begins.append(begin)
    end, means = n, []
    for begin in reversed(begins):
        means.append(sums.mean(int(begin[end]), end))
        end = int(begin[end])
    return np.array([sums.mean(0, end), *reversed(means)])


def lloyd(distinct: Values, counts: Values, first: Values) -> Values:
    """Lloyd's algorithm: every number belongs to the nearest value, every value becomes the mean of its numbers.

    Args:
        distinct: ascending numbers, (n,).
        counts: how often each occurs, (n,).
        first: ascending values, (k,). Those to which no number belongs are left out.
    """
    sums, means = _Sums(distinct, counts), first
    for _ in range(_ROUNDS):
        bounds = np.searchsorted(distinct, (means[1:] + means[:-1]) / 2, side="right")
        begins, ends = np.concatenate([[0], bounds]), np.concatenate([bounds, [len(distinct)]])
        used = begins < ends
        found = sums.means(begins[used], ends[used])
        if len(found) == len(means) and np.array_equal(found, means):
            break
        means = found
    return means


def _exact_on_sets(distinct: Values, counts: Values, entries: int) -> Values:
    """The optimum of the means of neighbours, joined so that the sets are as dense as the values of a codebook would be.

    These are as dense as the cube root of the density f of the numbers. Between two numbers with a gap g, f = 1 / g, so the
    gap takes g · f^(1/3) = g^(2/3) of the sum.

    Source: Panter, Dite 1951, doi:10.1109/JRPROC.1951.230419 (the density of the values).
    """
    share = np.concatenate([[0.0], np.cumsum(np.diff(distinct) ** (2 / 3))])
    place = np.minimum(share * (MOST_DISTINCT / share[-1]), MOST_DISTINCT - 1).astype(np.intp)
    begins = np.flatnonzero(np.diff(place, prepend=-1))
    weights = np.add.reduceat(counts, begins)
    means: Values = np.add.reduceat(counts * distinct, begins) / weights
    return optimum(means, weights, entries) if len(means) > entries else means


class _Sums:
    """Prefix sums of ascending numbers, less their mean, so that no digits are lost where they are far from 0."""

    def __init__(self, distinct: Values, counts: Values) -> None:
        self._middle = float(np.average(distinct, weights=counts))
        centred = distinct - self._middle
        self._parts = [np.concatenate([[0.0], np.cumsum(counts * centred**power)]) for power in range(3)]

    def cost(self, begin: Places, end: Places) -> Values:
        """The squared error of the numbers begin … end − 1 around their mean; infinite where there are none, except at 0."""
        weight, first, second = (part[end] - part[begin] for part in self._parts)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.maximum(second - first**2 / weight, 0.0)
        return np.where(end > begin, found, np.where(end == 0, 0.0, np.inf))

    def means(self, begin: Places, end: Places) -> Values:
        weight, first, _ = (part[end] - part[begin] for part in self._parts)
        found: Values = first / weight + self._middle
        return found

    def mean(self, begin: int, end: int) -> float:
        return float(self.means(np.array([begin]), np.array([end]))[0])


def _one_more(least: Values, sums: _Sums) -> tuple[Values, Places]:
    """(least cost with one cluster more, the beginning of the last one) for the first 0, 1, …, n numbers."""
    n = len(least) - 1
    found, begin = np.full(n + 1, np.inf), np.zeros(n + 1, np.intp)
    found[0] = 0.0
    stride = 1 << max(n.bit_length() - 1, 0)
    while stride:
        ends = np.arange(stride, n + 1, 2 * stride)
        beyond = ends + stride
        low, high = begin[ends - stride], np.where(beyond <= n, begin[np.minimum(beyond, n)], ends - 1)
        high = np.clip(high, low, ends - 1)
        lengths = high - low + 1
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        owner = np.repeat(np.arange(len(ends)), lengths)
        candidates = np.arange(len(owner)) - starts[owner] + low[owner]
        costs = least[candidates] + sums.cost(candidates, ends[owner])
        found[ends] = np.minimum.reduceat(costs, starts)
        best = np.flatnonzero(costs == found[ends][owner])
        places = np.unique(owner[best], return_index=True)[1]
        begin[ends] = candidates[best[places]]
        stride //= 2
    return found, begin
