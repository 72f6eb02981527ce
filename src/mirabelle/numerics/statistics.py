"""Confidence intervals of metrics, and paired tests of two models on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Scores = npt.NDArray[Any]  # one entry per sample: a number, or all numbers that a statistic of the whole set needs
Statistic = Callable[[Scores], float]
_RESAMPLES, _SEED = 1000, 0
_FEWEST, _MOST_BYTES = 100, 2**31  # of large sets, such as ranks of all pixels: so many bytes in all, but no fewer resamples
_ROUNDING = 1e-12


def records_of(parts: Mapping[str, npt.NDArray[Any]]) -> Scores:
    """Structured array with one record for each sample, from arrays (samples, ...) by name.

    Example:
        >>> records_of({"right": np.array([2, 1]), "counted": np.array([3, 3])})["right"].sum()
        np.int64(3)
    """
    shapes = [(name, part.dtype, part.shape[1:]) for name, part in parts.items()]
    records = np.empty(len(next(iter(parts.values()))), shapes)
    for name, part in parts.items():
        records[name] = part
    return records


def mean_interval(scores: Scores, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of per-sample scores with its confidence interval: (mean, low, high).

    If all scores are 0 or 1, it is the interval of Wilson 1927; otherwise that of Student: mean ± t · s / √n.

    Example:
        >>> [round(x, 3) for x in mean_interval(np.array([1.0] * 98 + [0.0] * 2))]
        [0.98, 0.93, 0.994]
    """
    n, mean = len(scores), float(scores.mean())
    if np.isin(scores, (0.0, 1.0)).all():
        interval = stats.binomtest(int(scores.sum()), n).proportion_ci(confidence, method="wilson")
        return mean, float(interval.low), float(interval.high)
    return student_interval(scores, confidence)


def paired_p_value(before: Scores, after: Scores) -> float:
    """p-value of a paired test: the probability of a difference at least this large between two equally good models.

    If all scores are 0 or 1, it is McNemar's exact test: a binomial test on the samples that only one model gets right.
    Otherwise it is the paired t-test.

    Args:
        before: scores of the first model, (samples,).
        after: scores of the second model on the same samples, (samples,).

    Example:
        >>> paired_p_value(np.array([1.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 1.0, 1.0]))
        1.0

    Source: McNemar 1947, doi:10.1007/BF02295996.
    """
    assert before.shape == after.shape, "a paired test needs the same samples"
    difference = after - before
    if not difference.any():
        return 1.0
    if np.isin(before, (0.0, 1.0)).all() and np.isin(after, (0.0, 1.0)).all():
        gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
        return float(stats.binomtest(gained, gained + lost, 0.5).pvalue)
    if len(difference) == 1:
        return 1.0  # a single sample is no evidence
    if np.ptp(difference) <= _ROUNDING * np.abs(difference).max():
        return 0.0  # all differences are equal, so t is infinite
    return float(stats.ttest_rel(after, before).pvalue)


def paired_difference(before: Scores, after: Scores, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of after − before on the same samples with its confidence interval: (difference, low, high).

    For scores of 0 and 1, with c of n samples gained, b lost and d = (c − b) / n, the interval is

        d ± (z · √(b + c − n·d²) + 1) / n

    The 1 is a continuity correction, with which the interval agrees with the exact test of `paired_p_value`. If no sample was
    gained or lost, the interval is ± (1 − ((1 − confidence) / 2)^(1/n)), the exact bound on the rate of an event not seen in n
    samples. For other scores it is Student's interval of the n differences.

    Example:
        >>> before, after = np.array([1.0] * 90 + [0.0] * 10), np.array([1.0] * 96 + [0.0] * 4)
        >>> [round(x, 4) for x in paired_difference(before, after)]
        [0.06, 0.0035, 0.1165]

    Source: Fleiss, Levin, Paik 2003, Statistical Methods for Rates and Proportions, doi:10.1002/0471445428, section 13.1;
    Clopper, Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    assert before.shape == after.shape, "a paired difference needs the same samples"
    if not (np.isin(before, (0.0, 1.0)).all() and np.isin(after, (0.0, 1.0)).all()):
        return student_interval(after - before, confidence)
    n, changed, d = len(before), int((before != after).sum()), float((after - before).mean())
    if changed == 0:
        half = 1 - ((1 - confidence) / 2) ** (1 / n)
    else:
        half = (float(stats.norm.ppf((1 + confidence) / 2)) * math.sqrt(changed - n * d**2) + 1) / n
    return d, max(d - half, -1.0), min(d + half, 1.0)


def student_interval(scores: Scores, confidence: float = 0.95) -> tuple[float, float, float]:
    """Student's confidence interval of a mean, mean ± t · s / √n: (mean, low, high).

    For a single value, or if all values are equal, low and high equal the mean.

    Example:
        >>> [round(x, 3) for x in student_interval(np.array([0.9, 0.92, 0.94]))]
        [0.92, 0.87, 0.97]
    """
    n, mean = len(scores), float(scores.mean())
    if n == 1 or scores.std() == 0:
        return mean, mean, mean
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * scores.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def resampled_interval(scores: Scores, statistic: Statistic, confidence: float = 0.95) -> tuple[float, float, float]:
    """A statistic of a set of samples with its bootstrap percentile interval: (value, low, high).

    The samples are resampled with replacement 1000 times with a fixed seed; fewer times, but at least 100, if their scores take
    more than 2 MB, as the ranks of all pixels do. Resamples for which the statistic is not finite,
    such as a set without positive samples, are ignored.

    Example:
        >>> value, low, high = resampled_interval(np.arange(100.0), lambda scores: float(np.median(scores)))
        >>> value, low < 45 < 54 < high
        (49.5, True)

    Source: Efron, Tibshirani 1993, An Introduction to the Bootstrap, doi:10.1201/9780429246593, chapter 13.
    """
    low, high = _percentiles(np.array([statistic(scores[drawn]) for drawn in _draws(scores)]), confidence)
    return statistic(scores), low, high


def resampled_difference(
    before: Sequence[Scores], after: Sequence[Scores], statistic: Statistic, confidence: float = 0.95
) -> tuple[float, float, float, float]:
    """Mean over pairs of statistic(after) − statistic(before), with bootstrap interval and p-value: (difference, low, high, p).

    Each resample draws the same samples for both models and all pairs. p = 2 · min(fraction of resamples with a difference ≤ 0,
    fraction with a difference ≥ 0), but at least 1 / resamples.

    Example:
        >>> before = np.arange(100.0)
        >>> resampled_difference([before], [before + 1], lambda scores: float(np.median(scores)))
        (1.0, 1.0, 1.0, 0.001)

    Source: Efron, Tibshirani 1993, doi:10.1201/9780429246593, chapters 13 and 16.
    """
    assert len({len(scores) for scores in (*before, *after)}) == 1, "a paired difference needs the same samples"

    def difference(drawn: npt.NDArray[np.int64] | slice) -> float:
        return float(np.mean([statistic(b[drawn]) - statistic(a[drawn]) for a, b in zip(before, after, strict=True)]))

    observed = difference(slice(None))
    draws = np.array([difference(drawn) for drawn in _draws(before[0])])
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return observed, math.nan, math.nan, 1.0
    p_value = 2 * min(float((draws <= 0).mean()), float((draws >= 0).mean()))
    return observed, *_percentiles(draws, confidence), min(1.0, max(p_value, 1 / len(draws)))


def _draws(scores: Scores) -> Iterator[npt.NDArray[np.int64]]:
    generator, n = np.random.default_rng(_SEED), len(scores)
    count = min(_RESAMPLES, max(_FEWEST, _MOST_BYTES // max(1, scores.nbytes)))
    return (generator.integers(0, n, n) for _ in range(count))


def _percentiles(values: npt.NDArray[np.float64], confidence: float) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
