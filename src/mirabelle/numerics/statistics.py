"""Confidence intervals of metrics, and paired tests of two models on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special  # `scipy.stats` alone takes half a second to import

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

    - Scores of 0 and 1: the interval of Wilson 1927.
    - Other scores in [0, 1], such as the fraction of correct tokens: Wilson's interval for the number of samples of 0 and 1
      that would give the same variance, m · (1 − m) · n / s², with Student's t. In the middle of [0, 1] it is Student's
      interval; at the ends, where that one holds the mean too rarely, it reaches inwards. If all are equal, see `unseen`.
    - All other scores: Student's interval, mean ± t · s / √n.

    Example:
        >>> [round(x, 3) for x in mean_interval(np.array([1.0] * 98 + [0.0] * 2))]
        [0.98, 0.93, 0.994]
        >>> [round(x, 3) for x in mean_interval(np.array([1.0] * 18 + [0.5] * 2))]
        [0.95, 0.824, 0.987]

    Source: Franco, Little, Louis, Slud 2019, doi:10.1093/jssam/smy019 (proportions of clusters).
    """
    n, mean = len(scores), float(scores.mean())
    if np.isin(scores, (0.0, 1.0)).all():
        return mean, *_wilson_of_counts(int(scores.sum()), n, confidence)
    if not _in_unit_interval(scores):
        return student_interval(scores, confidence)
    if n == 1 or np.ptp(scores) <= _ROUNDING:
        share = unseen(n, confidence)
        return mean, mean - share * mean, mean + share * (1 - mean)
    return mean, *_wilson(mean, float(scores.var(ddof=1)) / n, n, confidence)


def _wilson_of_counts(k: int, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's interval for a proportion, k of n."""
    z, share = float(special.ndtri((1 + confidence) / 2)), k / n
    center = (2 * n * share + z**2) / (2 * (n + z**2))
    half = z / (2 * (n + z**2)) * math.sqrt(4 * n * share * (1 - share) + z**2)
    return (center - half if k else 0.0), (center + half if k < n else 1.0)


def _wilson(value: float, variance: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's interval for a value in (0, 1) with this variance, from n samples, with Student's t."""
    t = float(special.stdtrit(n - 1, (1 + confidence) / 2))
    over = t**2 * variance / (value * (1 - value))  # t² / number of samples of 0 and 1
    center, half = (value + over / 2) / (1 + over), math.sqrt(over * value * (1 - value) + over**2 / 4) / (1 + over)
    return max(center - half, 0.0), min(center + half, 1.0)


def unseen(n: int, confidence: float = 0.95) -> float:
    """The largest share of samples of a kind of which n samples show none, 1 − ((1 − confidence) / 2)^(1/n).

    It is the exact bound of Clopper and Pearson 1934, and says what n equal results leave open.

    Example:
        >>> round(unseen(20), 3)
        0.168
    """
    return float(1 - ((1 - confidence) / 2) ** (1 / n))


def _in_unit_interval(*values: Scores | float) -> bool:
    return all(bool((np.asarray(part) >= 0).all() and (np.asarray(part) <= 1).all()) for part in values)


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
        return min(1.0, 2 * float(special.bdtr(min(gained, lost), gained + lost, 0.5)))
    if len(difference) == 1:
        return 1.0  # a single sample is no evidence
    if np.ptp(difference) <= _ROUNDING * np.abs(difference).max():
        return 0.0  # all differences are equal, so t is infinite
    n = len(difference)
    t = float(difference.mean() / (difference.std(ddof=1) / math.sqrt(n)))
    return 2 * float(special.stdtr(n - 1, -abs(t)))


def paired_difference(before: Scores, after: Scores, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of after − before on the same samples with its confidence interval: (difference, low, high).

    For scores of 0 and 1, with c of n samples gained, b lost and d = (c − b) / n, the interval is

        d ± (z · √(b + c − n·d²) + 1) / n

    The 1 is a continuity correction, with which the interval agrees with the exact test of `paired_p_value`. If no sample was
    gained or lost, the interval is ± `unseen(n)`, and so it is for other scores in [0, 1] without any change. Otherwise it is
    Student's interval of the n differences.

    Example:
        >>> before, after = np.array([1.0] * 90 + [0.0] * 10), np.array([1.0] * 96 + [0.0] * 4)
        >>> [round(x, 4) for x in paired_difference(before, after)]
        [0.06, 0.0035, 0.1165]

    Source: Fleiss, Levin, Paik 2003, Statistical Methods for Rates and Proportions, doi:10.1002/0471445428, section 13.1;
    Clopper, Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    assert before.shape == after.shape, "a paired difference needs the same samples"
    if not (np.isin(before, (0.0, 1.0)).all() and np.isin(after, (0.0, 1.0)).all()):
        if not (after - before).any() and _in_unit_interval(before, after):
            return 0.0, -unseen(len(before), confidence), unseen(len(before), confidence)
        return student_interval(after - before, confidence)
    n, changed, d = len(before), int((before != after).sum()), float((after - before).mean())
    if changed == 0:
        half = unseen(n, confidence)
    else:
        half = (float(special.ndtri((1 + confidence) / 2)) * math.sqrt(changed - n * d**2) + 1) / n
    return d, max(d - half, -1.0), min(d + half, 1.0)


def student_interval(scores: Scores, confidence: float = 0.95) -> tuple[float, float, float]:
    """Student's confidence interval of a mean, mean ± t · s / √n: (mean, low, high).

    For a single value, or if all values are equal, low and high equal the mean: nothing is known about its spread.

    Example:
        >>> [round(x, 3) for x in student_interval(np.array([0.9, 0.92, 0.94]))]
        [0.92, 0.87, 0.97]
    """
    n, mean = len(scores), float(scores.mean())
    if n == 1 or scores.std() == 0:
        return mean, mean, mean
    half = float(special.stdtrit(n - 1, (1 + confidence) / 2) * scores.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def interval_of_repeats(blocks: Scores, confidence: float = 0.95, floor: float = 0.0) -> tuple[float, float, float]:
    """The mean of a measurement's blocks, and the interval in which the mean of a repetition falls: (mean, low, high).

    The difference of two means of k blocks has twice the variance of one, so the interval is

        mean ± √(t² · 2 · s² / k + floor²)

    with Student's t for k − 1 degrees of freedom and the standard deviation s of the blocks. It is √2 times as wide as a
    confidence interval of the mean, and so covers the true mean more often than `confidence` says.

    Args:
        blocks: one value for each block, (k,), k ≥ 2; drawn independently, such as with everything set up anew.
        confidence: probability that the mean of a repetition lies in the interval.
        floor: what repetitions differ by even where the blocks of one measurement agree.

    Example:
        >>> [round(x, 3) for x in interval_of_repeats(np.array([1.0, 1.1, 0.9, 1.0]))]
        [1.0, 0.816, 1.184]

    Source: Hahn, Meeker 1991, Statistical Intervals, doi:10.1002/9780470316771, section 4.7 (a future sample mean).
    """
    k, mean = len(blocks), float(blocks.mean())
    half = float(special.stdtrit(k - 1, (1 + confidence) / 2)) * float(blocks.std(ddof=1)) * math.sqrt(2 / k)
    half = math.hypot(half, floor)
    return mean, mean - half, mean + half


def resampled_interval(scores: Scores, statistic: Statistic, confidence: float = 0.95) -> tuple[float, float, float]:
    """A statistic of a set of samples with its bootstrap percentile interval: (value, low, high).

    The samples are resampled with replacement 1000 times with a fixed seed; fewer times, but at least 100, if their scores take
    more than 2 MB, as the ranks of all pixels do. Resamples for which the statistic is not finite, such as a set without
    positive samples, are ignored. Percentiles are moved outwards as Student's t requires for n samples, since resamples of few
    samples vary too little. For values in [0, 1] the interval also includes Wilson's for the variance of the resamples, since
    percentiles near an end hold the true value too rarely; and if all resamples give the same value, such as a perfect F1, it
    is what `unseen(n)` samples of another kind could change.

    Example:
        >>> value, low, high = resampled_interval(np.arange(100.0), lambda scores: float(np.median(scores)))
        >>> value, low < 45 < 54 < high
        (49.5, True)

    Source: Efron, Tibshirani 1993, An Introduction to the Bootstrap, doi:10.1201/9780429246593, chapter 13; Hesterberg 2015,
    doi:10.1080/00031305.2015.1089789, section 4.1 (expanded percentiles).
    """
    value, n = statistic(scores), len(scores)
    draws = np.array([statistic(scores[drawn]) for drawn in _draws(scores)])
    if _in_unit_interval(value) and _no_spread(draws):
        share = unseen(n, confidence)
        return value, value - share * value, value + share * (1 - value)
    low, high = _percentiles(draws, confidence, n)
    finite = draws[np.isfinite(draws)]
    if n > 1 and 0 < value < 1 and len(finite) and _in_unit_interval(finite):
        inner, outer = _wilson(value, float(finite.var()) * n / (n - 1), n, confidence)
        low, high = min(low, inner), max(high, outer)
    return value, low, high


def resampled_difference(
    before: Sequence[Scores], after: Sequence[Scores], statistic: Statistic, confidence: float = 0.95
) -> tuple[float, float, float, float]:
    """Mean over pairs of statistic(after) − statistic(before), with bootstrap interval and p-value: (difference, low, high, p).

    Each resample draws the same samples for both models and all pairs. p = 2 · min(fraction of resamples with a difference ≤ 0,
    fraction with a difference ≥ 0), but at least 1 / resamples, made larger as Student's t requires for n samples, so that the
    interval leaves out 0 where p is small. If no sample changed, for a statistic in [0, 1], the interval is ± `unseen(n)`.

    Example:
        >>> before = np.arange(100.0)
        >>> [round(x, 4) for x in resampled_difference([before], [before + 1], lambda scores: float(np.median(scores)))]
        [1.0, 1.0, 1.0, 0.0015]

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
    n, p_value = len(before[0]), 2 * min(float((draws <= 0).mean()), float((draws >= 0).mean()))
    p_value = _of_few(min(1.0, max(p_value, 1 / len(draws))), n)
    same = all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    if same and _in_unit_interval(*(statistic(one) for one in before)):
        return 0.0, -unseen(n, confidence), unseen(n, confidence), p_value
    return observed, *_percentiles(draws, confidence, n), p_value


def _draws(scores: Scores) -> Iterator[npt.NDArray[np.int64]]:
    generator, n = np.random.default_rng(_SEED), len(scores)
    count = min(_RESAMPLES, max(_FEWEST, _MOST_BYTES // max(1, scores.nbytes)))
    return (generator.integers(0, n, n) for _ in range(count))


def _no_spread(draws: npt.NDArray[np.float64]) -> bool:
    finite = draws[np.isfinite(draws)]
    return len(finite) > 0 and float(np.ptp(finite)) <= _ROUNDING


def _of_few(p_value: float, n: int) -> float:
    """A p-value of resamples of n samples, which vary less than samples do, as that of Student's t."""
    if n == 1:
        return 1.0
    return min(1.0, 2 * float(special.stdtr(n - 1, special.ndtri(p_value / 2) * math.sqrt((n - 1) / n))))


def _percentiles(values: npt.NDArray[np.float64], confidence: float, n: int) -> tuple[float, float]:
    """The percentiles of resamples of n samples, moved outwards by the inverse of `_of_few`."""
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    if n > 1:
        tail = float(special.ndtr(special.stdtrit(n - 1, tail) * math.sqrt(n / (n - 1))))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
