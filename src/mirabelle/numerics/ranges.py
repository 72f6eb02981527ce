"""Clipping ranges for the quantization of activations, computed from histograms."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.float64]
Edges = npt.NDArray[np.float64]


def percentile_range(counts: Counts, edges: Edges, percentile: float) -> tuple[float, float]:
    """The range that excludes (100 − percentile) / 2 percent of the values at each end.

    Args:
        counts: histogram, (bins,).
        edges: bin edges, (bins + 1,).
        percentile: in (0, 100].

    Example:
        >>> percentile_range(np.array([1.0, 98.0, 1.0]), np.array([-10.0, -1.0, 1.0, 10.0]), 98.0)
        (-1.0, 1.0)
    """
    cumulative = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
    outside = (1.0 - percentile / 100.0) / 2.0
    # If the bin at one end contains more than this fraction (such as the zeros after a ReLU), its outer edge is the limit.
    low = edges[np.searchsorted(cumulative, outside + 1e-12, side="right") - 1]
    high = edges[np.searchsorted(cumulative, 1.0 - outside - 1e-12, side="left")]
    return float(low), float(high)


def least_error_range(counts: Counts, edges: Edges, levels: int = 256, candidates: int = 48) -> tuple[float, float]:
    """The range with the smallest squared error of rounding and clipping.

    (a, b)* = argmin Σ_k counts_k · (x_k − Q(x_k))² over fractions of both ends of the histogram, where x_k is the middle of a
    bin, Q(x) = s · clamp(round(x / s), z, z + levels − 1), s = (b − a) / (levels − 1), z = round(a / s). The range is extended
    to contain 0.

    Args:
        counts: histogram, (bins,).
        edges: bin edges, (bins + 1,).
        levels: number of quantization levels.
        candidates: fractions that are tried for each end, from 1 down to 1 / candidates.

    Example:
        >>> counts = np.array([1e6] * 50 + [0.0] * 949 + [1.0])
        >>> least_error_range(counts, np.linspace(0.0, 1000.0, 1001))  # one value is far from the others
        (0.0, 62.5)
    """
    middles = (edges[:-1] + edges[1:])[counts > 0] / 2.0
    weights = counts[counts > 0]
    least, best = np.inf, (float(edges[0]), float(edges[-1]))
    ends = [limit * np.arange(candidates, 0, -1) / candidates for limit in (min(edges[0], 0.0), max(edges[-1], 0.0))]
    for low in np.unique(ends[0]):
        for high in np.unique(ends[1])[::-1]:
            scale = (high - low) / (levels - 1)
            if scale <= 0:
                continue
            zero = np.round(low / scale)
            rounded = scale * np.clip(np.round(middles / scale), zero, zero + levels - 1)
            error = float(weights @ np.square(middles - rounded))
            if error < least:
                least, best = error, (float(low), float(high))
    return best


def entropy_threshold(counts: Counts, edges: Edges, levels: int = 128) -> float:
    """The threshold t that loses the least information when |x| is clipped at t and rounded to `levels` levels.

    t* = argmin_t KL(P_t ‖ Q_t). P_t is the histogram up to t, with all larger values added to its last bin. Q_t is the
    histogram up to t, merged into `levels` groups of equal size, the counts of each group spread evenly over its non-empty
    bins.

    Args:
        counts: histogram of |x| starting at 0, (bins,), with more than `levels` bins.
        edges: bin edges, (bins + 1,).
        levels: number of quantization levels for one sign.

    Source: Migacz 2017, "8-bit inference with TensorRT", GTC, slides 34–38.
    """
    bins = len(counts)
    assert bins > levels, f"{bins} bins are too few for {levels} levels"
    best_threshold, best_divergence = float(edges[-1]), np.inf
    for stop in range(levels, bins + 1, max(1, (bins - levels) // 256)):
        divergence = _clipping_divergence(counts, stop, levels)
        if divergence < best_divergence:
            best_threshold, best_divergence = float(edges[stop]), divergence
    return best_threshold


def _clipping_divergence(counts: Counts, stop: int, levels: int) -> float:
    inside = counts[:stop]
    reference = inside.copy()
    reference[-1] += counts[stop:].sum()
    group = np.arange(stop) * levels // stop
    occupied = inside > 0
    mass = np.bincount(group, weights=inside, minlength=levels)
    spread = np.bincount(group, weights=occupied, minlength=levels)
    candidate = np.where(occupied, (mass / np.maximum(spread, 1))[group], 0.0)
    if candidate.sum() == 0:
        return np.inf
    p, q = reference / reference.sum(), candidate / candidate.sum()
    # A bin that is empty only in Q is treated as having one ten-thousandth of a count.
    q = np.where(q > 0, q, 1e-4 / max(candidate.sum(), 1.0))
    positive = p > 0
    return float(np.sum(p[positive] * np.log(p[positive] / q[positive])))
