"""Each formula against an independent evaluation."""

from __future__ import annotations

import gzip
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from mirabelle.numerics import affine, divergence, masks, ranges, statistics
from mirabelle.numerics.gzip_length import gzip_length


def test_soft_target_divergence_is_hintons_formula() -> None:
    generator = np.random.default_rng(0)
    student, teacher, temperature = generator.normal(size=(5, 7)), generator.normal(size=(5, 7)), 3.0
    p, q = special.softmax(teacher / temperature, axis=1), special.softmax(student / temperature, axis=1)
    expected = temperature**2 * stats.entropy(p, q, axis=1).mean()
    given_value = divergence.soft_target_divergence(torch.tensor(student), torch.tensor(teacher), temperature)
    assert given_value.item() == pytest.approx(expected, rel=1e-5)  # computed in float32


def test_soft_targets_pull_towards_the_teacher() -> None:
    student = torch.zeros(1, 2, requires_grad=True)
    divergence.soft_target_divergence(student, torch.tensor([[2.0, 0.0]]), 1.0).backward()
    p = special.softmax([2.0, 0.0])
    assert student.grad is not None
    assert student.grad[0].tolist() == pytest.approx([0.5 - p[0], 0.5 - p[1]], abs=1e-6)


@given(sparsity=st.floats(0, 0.99), size=st.integers(1, 60), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_keep_highest_keeps_exactly_the_highest(sparsity: float, size: int, seed: int) -> None:
    scores = torch.randint(0, 5, (size,), generator=torch.Generator().manual_seed(seed)).float()
    mask = masks.keep_highest(scores, sparsity)
    removed = int(sparsity * size)
    assert int((~mask).sum()) == removed
    if 0 < removed < size:
        assert scores[~mask].max() <= scores[mask].min()


def test_keep_highest_together_ranks_across_tensors() -> None:
    one, two = masks.keep_highest_together([torch.tensor([1.0, 2.0]), torch.tensor([[3.0], [4.0]])], 0.5)
    assert one.tolist() == [False, False]
    assert two.tolist() == [[True], [True]]


def test_asymmetric_parameters_are_those_of_onnx() -> None:
    scale, zero = affine.asymmetric_parameters(torch.tensor(-1.0), torch.tensor(3.0))
    assert scale.item() == pytest.approx(4 / 255)
    assert zero.item() == round(255 / 4)
    scale, zero = affine.asymmetric_parameters(torch.tensor(2.0), torch.tensor(2.0))
    assert (scale.item(), zero.item()) == (pytest.approx(2 / 255), 0.0)  # widened to hold 0
    assert affine.asymmetric_parameters(torch.tensor(0.0), torch.tensor(0.0))[0].item() == 1.0


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_symmetric_scales_lose_no_more_than_the_plain_ones(bits: int) -> None:
    rows = torch.randn(6, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[3] = 0
    high = 2 ** (bits - 1) - 1
    plain = (rows.abs().amax(1) / high).clamp(min=1e-12)
    found = affine.symmetric_scales(rows, high)

    def loss(scale: torch.Tensor) -> torch.Tensor:
        step = scale[:, None]
        return ((torch.round(rows / step).clamp(-high, high) * step - rows) ** 2).sum(1)

    assert (loss(found)[:3] <= 1.02 * loss(plain)[:3]).all()  # bfloat16 rounding of the scale costs up to 2 %
    assert found[3] == 1.0
    assert torch.equal(found.bfloat16().double(), found)


def test_quantize_rounds_half_to_even_and_clamps() -> None:
    values = torch.tensor([0.5, 1.5, 2.5, 99.0])
    assert affine.quantize(values, torch.tensor(1.0), torch.tensor(0.0), -8, 7).tolist() == [0.0, 2.0, 2.0, 7.0]


def test_percentile_range_agrees_with_numpy_to_a_bin() -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    counts, edges = np.histogram(values, bins=2000)
    low, high = ranges.percentile_range(counts.astype(float), edges, 99.0)
    width = edges[1] - edges[0]
    assert low == pytest.approx(np.percentile(values, 0.5), abs=2 * width)
    assert high == pytest.approx(np.percentile(values, 99.5), abs=2 * width)


def test_percentile_range_keeps_the_zeros_of_a_relu() -> None:
    values = np.maximum(np.random.default_rng(0).normal(size=100_000), 0)
    counts, edges = np.histogram(values, bins=500)
    low, _ = ranges.percentile_range(counts.astype(float), edges, 99.9)
    assert low == 0.0


def test_entropy_threshold_cuts_a_far_outlier_and_keeps_a_uniform() -> None:
    generator = np.random.default_rng(0)
    with_outlier = np.abs(np.append(generator.normal(size=200_000), 60.0))
    counts, edges = np.histogram(with_outlier, bins=2048, range=(0, 60.0))
    assert 2.0 < ranges.entropy_threshold(counts.astype(float), edges) < 12.0
    counts, edges = np.histogram(generator.uniform(0, 1, 200_000), bins=2048, range=(0, 1))
    assert ranges.entropy_threshold(counts.astype(float), edges) > 0.95


def test_wilsons_interval_is_that_of_the_textbook() -> None:
    n, k, z = 50, 45, stats.norm.ppf(0.975)
    p = k / n
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    mean, low, high = statistics.mean_interval(np.array([1.0] * k + [0.0] * (n - k)))
    assert (mean, low, high) == pytest.approx((p, center - half, center + half))


def test_the_interval_of_real_scores_covers_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        _, low, high = statistics.mean_interval(generator.normal(1.0, 2.0, size=20))
        covered += low <= 1.0 <= high
    assert 365 <= covered <= 395  # binomial(400, 0.95): 380 ± 3.4 standard deviations


def covered(interval: Any, draw: Any, truth: float, times: int) -> float:
    """The fraction of intervals of drawn scores that hold the truth."""
    return float(np.mean([low <= truth <= high for _, low, high in (interval(draw()) for _ in range(times))]))


@pytest.mark.parametrize("n", [5, 20, 100])
@pytest.mark.parametrize("p", [0.7, 0.95, 0.99])
def test_intervals_of_fractions_hold_the_truth_also_near_one_and_for_few_samples(n: int, p: float) -> None:
    generator = np.random.default_rng(n)

    def fractions() -> statistics.Scores:
        """Correct tokens of ten, which are more alike within a sample than between samples."""
        return generator.binomial(10, generator.beta(5 * p, 5 * (1 - p), n)) / 10

    assert covered(statistics.mean_interval, fractions, p, 1000) >= 0.91  # Student's: 0.26 for n = 5 and p = 0.99


def test_intervals_of_ratios_over_clustered_tokens_hold_the_truth() -> None:
    generator = np.random.default_rng(3)

    def counts() -> statistics.Scores:
        tokens = generator.integers(1, 30, 20)
        return np.stack([generator.binomial(tokens, generator.beta(3.88, 0.12, 20)), tokens], 1).astype(float)

    def interval(scores: statistics.Scores) -> tuple[float, float, float]:
        return statistics.resampled_interval(scores, lambda part: float(part[:, 0].sum() / part[:, 1].sum()))

    assert covered(interval, counts, 0.97, 150) >= 0.88  # percentiles alone: 0.82


def test_perfect_results_of_few_samples_are_not_certain() -> None:
    share = 1 - 0.025 ** (1 / 20)
    wilson = statistics.mean_interval(np.ones(20))
    assert wilson == pytest.approx((1.0, 0.8389, 1.0), abs=1e-4)
    assert statistics.mean_interval(np.full(20, 0.75)) == pytest.approx((0.75, 0.75 - 0.75 * share, 0.75 + 0.25 * share))
    assert statistics.mean_interval(np.array([0.5])) == pytest.approx((0.5, 0.5 - 0.5 * 0.975, 0.5 + 0.5 * 0.975))
    perfect = statistics.resampled_interval(np.arange(20.0), lambda part: 1.0)
    assert perfect == pytest.approx((1.0, 1 - share, 1.0))
    same = np.full(20, 0.5)
    assert statistics.paired_difference(same, same) == pytest.approx((0.0, -share, share))
    assert statistics.resampled_difference([same], [same], lambda part: 0.9) == pytest.approx((0.0, -share, share, 1.0))


def test_the_interval_of_a_resampled_difference_leaves_out_zero_where_its_test_does() -> None:
    generator, agreed = np.random.default_rng(5), 0
    for _ in range(60):
        before = generator.normal(size=12)
        after = before + generator.normal(0.35, 0.6, size=12)
        _, low, high, p_value = statistics.resampled_difference([before], [after], lambda part: float(part.mean()))
        agreed += (p_value < 0.05) == (low > 0 or high < 0)
    assert agreed >= 58  # a p-value counts resamples, a percentile lies between two


def test_mcnemar_counts_only_the_discordant_samples() -> None:
    before = np.array([1.0] * 100 + [0.0] * 10)
    after = before.copy()
    after[:9] = 0.0
    after[100] = 1.0
    assert statistics.paired_p_value(before, after) == pytest.approx(stats.binomtest(1, 10, 0.5).pvalue)
    assert statistics.paired_p_value(before, before) == 1.0


def test_real_scores_get_the_paired_t_test() -> None:
    generator = np.random.default_rng(0)
    before = generator.normal(size=30)
    after = before + generator.normal(0.5, 0.1, size=30)
    assert statistics.paired_p_value(before, after) == pytest.approx(stats.ttest_rel(after, before).pvalue)


@pytest.mark.parametrize(("n", "gained", "lost"), [(400, 3, 5), (100, 0, 6), (1000, 40, 12)])
def test_the_interval_of_a_difference_of_zeros_and_ones_is_the_textbooks(n: int, gained: int, lost: int) -> None:
    before, after = np.ones(n), np.ones(n)
    before[:gained], after[gained : gained + lost] = 0, 0
    difference, low, high = statistics.paired_difference(before, after)
    # The same from the variance of the n differences: b + c - n d² is n times their variance with divisor n.
    half = stats.norm.ppf(0.975) * np.sqrt(np.var(after - before) / n) + 1 / n
    assert difference == pytest.approx((gained - lost) / n)
    assert (low, high) == pytest.approx((difference - half, difference + half))


def test_the_interval_and_the_exact_test_agree_on_whether_a_difference_is_shown() -> None:
    n, disputed = 1000, []
    for changed in range(1, 41):
        for gained in range(changed + 1):
            before, after = np.ones(n), np.ones(n)
            before[:gained], after[gained:changed] = 0, 0
            _, low, high = statistics.paired_difference(before, after)
            p_value = statistics.paired_p_value(before, after)
            if (p_value < 0.05) != (low > 0 or high < 0):
                disputed.append(p_value)
    assert all(0.045 < p_value < 0.055 for p_value in disputed)
    assert len(disputed) <= 4


def test_the_interval_of_a_difference_covers_the_true_one() -> None:
    generator, n, covered = np.random.default_rng(0), 300, 0
    for _ in range(400):
        before = (generator.random(n) < 0.9).astype(float)
        after = np.where(generator.random(n) < 0.05, 1 - before, before)  # true difference: 0.05 · (0.1 - 0.9)
        _, low, high = statistics.paired_difference(before, after)
        covered += low <= -0.04 <= high
    assert covered >= 0.93 * 400  # 95 % asked; two standard errors of 400 draws are 2.2 %


def test_without_a_change_the_difference_is_bounded_by_what_was_never_seen() -> None:
    same = np.array([1.0] * 390 + [0.0] * 10)
    difference, low, high = statistics.paired_difference(same, same)
    upper = stats.binomtest(0, 400).proportion_ci(0.95, method="exact").high  # Clopper and Pearson's
    assert (difference, low, high) == pytest.approx((0.0, -upper, upper))


def test_other_scores_get_the_interval_of_the_paired_t_test() -> None:
    generator = np.random.default_rng(4)
    before = generator.normal(size=40)
    after = before + 0.2 + 0.5 * generator.normal(size=40)
    difference, low, high = statistics.paired_difference(before, after)
    expected = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert difference == pytest.approx((after - before).mean())


def test_a_floor_keeps_the_highest_of_each_tensor_and_takes_more_of_the_others() -> None:
    """Half of 8 go; with a floor of 0.5 a tensor of 4 keeps ⌈0.5 · 0.5 · 4⌉ = 1, so that one of the large ones goes instead."""
    small, large = torch.tensor([1.0, 4.0, 3.0, 2.0]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])
    one, two = masks.keep_highest_together([small, large], 0.5, floor=0.5)
    assert one.tolist() == [False, True, False, False]
    assert two.tolist() == [[False, True], [True, True]]
    one, two = masks.keep_highest_together([small, large], 0.5, floor=1.0)
    assert (int(one.sum()), int(two.sum())) == (2, 2), "the same sparsity for all"
    one, two = masks.keep_highest_together([small, large], 0.9, floor=0.1)
    assert (int(one.sum()), int(two.sum())) == (1, 1), "no more than the floors leave"


def test_the_length_after_gzip_is_exact_for_short_files_and_near_for_long_ones() -> None:
    weights = np.random.default_rng(0).normal(0, 0.05, 4_300_000).astype(np.float32)
    pruned = np.where(np.arange(4_300_000) % 1000 < 100, weights, 0).astype(np.float32)
    for data in (b"", b"abc" * 1000, weights[:100_000].tobytes()):
        assert gzip_length(data) == len(gzip.compress(data, 9, mtime=0))
    for data in (weights.tobytes(), pruned.tobytes()):
        assert gzip_length(data) == pytest.approx(len(gzip.compress(data, 9, mtime=0)), rel=0.01)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 0.99])
def test_erdos_renyi_keeps_by_the_sizes_and_in_all_what_is_asked(sparsity: float) -> None:
    torch.manual_seed(0)
    scores = [torch.rand(64, 3, 3, 3), torch.rand(128, 64, 3, 3), torch.rand(10, 128), torch.rand(300)]
    kept = [int(mask.sum()) for mask in masks.keep_by_erdos_renyi(scores, sparsity)]
    total = sum(score.numel() for score in scores)
    assert sum(kept) == total - int(sparsity * total)
    shares = [count / sum(score.shape) for count, score in zip(kept, scores, strict=True) if count < score.numel()]
    assert not shares or max(shares) - min(shares) <= 2 / min(sum(score.shape) for score in scores) * max(1, *shares)
    for score, mask in zip(scores, masks.keep_by_erdos_renyi(scores, sparsity), strict=True):
        assert not mask.any() or mask.all() or float(score[mask].min()) >= float(score[~mask].max())


def test_lamp_is_the_share_of_the_squares_that_are_left() -> None:
    torch.manual_seed(0)
    score = torch.rand(7, 5)
    found = masks.lamp(score)
    for place in ((0, 0), (3, 4), (6, 1)):
        left = score[score >= score[place]].double().square().sum()
        assert float(found[place]) == pytest.approx(float(score[place].double().square() / left), rel=1e-5)
    assert float(found.max()) == 1
    assert torch.equal(masks.lamp(torch.zeros(3)), torch.zeros(3))
    assert masks.lamp(torch.ones(3)).tolist() == pytest.approx([1 / 3, 1 / 2, 1])
    assert torch.equal(found.flatten().argsort(), score.flatten().argsort()), "within a tensor the order stays"


def test_strange_scores_have_a_lamp_and_scalars_a_budget() -> None:
    assert masks.lamp(torch.tensor([1.0, math.inf, 2.0])).tolist() == pytest.approx([0.2, math.inf, 1.0])
    assert masks.lamp(torch.tensor([-3.0, 1.0])).tolist() == [0.0, 1.0]
    assert masks.lamp(torch.rand(10).half()).dtype == torch.float32
    (kept,) = masks.keep_by_erdos_renyi([torch.tensor(1.0)], 0.5)
    assert bool(kept)
