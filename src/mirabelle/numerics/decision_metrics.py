"""Metrics of classes and labels, as a record of each sample and a statistic of the records; higher is better for all of them.

All take `Decisions`, whatever the shape of the outputs was. Decisions without a target are left out; a decision on scores that
are not finite is wrong: it counts for no class, or, for a single label, for the wrong answer, and ranks at the wrong end.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mirabelle.errors import UserError
from mirabelle.numerics.arrays import Array, to_numpy
from mirabelle.numerics.decisions import Decisions
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.numerics.statistics import Scores, records_of

_BINS = 15
_TWO = 2  # classes of a binary problem
_RIGHT, _FOUND, _DUE, _ALL = range(4)  # columns of counts


def accuracy(decisions: Decisions) -> Tensor:
    """Accuracy: the fraction of right decisions, over samples, positions and labels.

    Returns:
        (samples,) for one decision a sample; otherwise (samples, 2), the number of right and of counted decisions.

    Example:
        >>> accuracy(Decisions(torch.tensor([[[0.0, 1.0]], [[2.0, 1.0]]]), torch.tensor([[1], [1]]))).tolist()
        [1.0, 0.0]
    """
    return _mean_of(decisions, torch.cat([(part.chosen() == part.targets).double() for part in decisions.parts()]))


def negative_log_likelihood(decisions: Decisions) -> Tensor:
    """Negative log-likelihood of the targets of each sample: −Σ log softmax(scores)_target, and the number of targets.

    Returns:
        (samples, 2).

    Raises:
        UserError: E131 for labels that do not exclude each other.
    """
    _check_exclusive(decisions, "negative_perplexity")
    losses = []
    for part in decisions.parts():
        flat = part.scores.double().flatten(0, 1)
        found = F.cross_entropy(flat, part.targets.flatten(), reduction="none", ignore_index=UNLABELLED)
        losses.append(found.reshape(part.targets.shape).masked_fill(part.counted & ~part.finite, math.inf))
    return _sums(torch.cat(losses), decisions.counted)


def hit_rate(decisions: Decisions, k: int = 10) -> Tensor:
    """Hit rate at k: 1 if the right candidate ranks among the first k, else 0. Ties count against it.

    Args:
        decisions: the classes are the candidates.
        k: length of the list of recommendations.
    """
    return _mean_of(decisions, (_rank(decisions, "hit_rate") < k).double())


def ndcg(decisions: Decisions, k: int = 10) -> Tensor:
    """Normalized discounted cumulative gain at k: 1 / log₂(rank + 2) if the rank of the right candidate, from 0, is below k.

    Args:
        decisions: the classes are the candidates.
        k: length of the list of recommendations.

    Source: Järvelin, Kekäläinen 2002, doi:10.1145/582415.582418, with one relevant item.
    """
    rank = _rank(decisions, "ndcg")
    return _mean_of(decisions, torch.where(rank < k, 1 / torch.log2(rank + 2.0), 0.0))


def confusion(decisions: Decisions) -> Scores:
    """What `f1` and `balanced_accuracy` count of each sample, in as few numbers as its shape allows.

    Returns:
        Records "labels" or "classes", (labels, 4): right and positive, found, due, and all decisions; of two classes the second
        is the label. For few positions with many classes the fields "due" and "found", (positions,), hold the classes.
    """
    classes, positions = decisions.scores.shape[-1], decisions.targets.shape[1]
    found = torch.cat([part.chosen() for part in decisions.parts()])
    due, counted = decisions.targets, decisions.counted
    if decisions.exclusive and classes > _TWO:
        if positions < classes:
            return records_of({"due": to_numpy(due.int()), "found": to_numpy(found.int())})
        place = torch.arange(len(due))[:, None] * classes

        def counts(index: Tensor, chosen: Tensor) -> Tensor:
            return torch.bincount((place + index)[chosen], minlength=len(due) * classes).reshape(len(due), classes)

        right, taken = counted & (found == due), counted & (found >= 0)
        table = [counts(due, right), counts(found, taken), counts(due, counted)]
        return records_of({"classes": to_numpy(torch.stack([*table, counted.sum(1, keepdim=True).expand(-1, classes)], -1))})
    if decisions.exclusive:
        due, found, counted = due[..., None], found[..., None], counted[..., None]
    found = torch.where(found < 0, 1 - due, found)  # not finite: the wrong one
    yes, said = (due == 1) & counted, (found == 1) & counted
    table = [(yes & said).sum(1), said.sum(1), yes.sum(1), counted.sum(1)]
    return records_of({"labels": to_numpy(torch.stack(table, -1))})


def f1(records: Scores) -> float:
    """F1 score: 2 · TP / (2 · TP + FP + FN), 0 for 0 / 0; of the second of two classes, or the mean over classes or labels.

    A class that is neither a target nor found does not count, as in scikit-learn.

    Args:
        records: of `confusion`.
    """
    counts, exclusive = _counts(records)
    both = counts[:, _FOUND] + counts[:, _DUE]
    scores = 2 * counts[:, _RIGHT] / np.maximum(both, 1)
    return _mean(scores[both > 0] if exclusive else scores[counts[:, _ALL] > 0])


def mean_iou(records: Scores) -> float:
    """Mean intersection over union: TP / (TP + FP + FN), averaged over the classes or labels that are a target or found.

    Of two classes, or of a single label, both answers count.

    Args:
        records: of `confusion`.

    Source: Everingham et al. 2015, doi:10.1007/s11263-014-0733-5.
    """
    counts, exclusive = _counts(records)
    if not exclusive and len(counts) == 1:
        right, found, due, every = counts[0].tolist()
        counts = np.array([counts[0], (every - found - due + right, every - found, every - due, every)])
    union = counts[:, _FOUND] + counts[:, _DUE] - counts[:, _RIGHT]
    return _mean(counts[union > 0, _RIGHT] / union[union > 0])


def balanced_accuracy(records: Scores) -> float:
    """Balanced accuracy: the recall of each class that is a target, averaged over the classes; for labels, over the labels.

    Args:
        records: of `confusion`.
    """
    counts, exclusive = _counts(records)
    with np.errstate(invalid="ignore", divide="ignore"):
        yes = counts[:, _RIGHT] / counts[:, _DUE]
        if exclusive:
            return _mean(yes[counts[:, _DUE] > 0])
        absent = counts[:, _ALL] - counts[:, _DUE]
        no = (absent - counts[:, _FOUND] + counts[:, _RIGHT]) / absent
    each = np.stack([yes, no], 1)
    return _mean(np.array([_mean(one[np.isfinite(one)]) for one in each]))


def ranks(decisions: Decisions) -> Scores:
    """What the metrics of an order need of each sample: the rank of its score and whether the label is true, for each label.

    Returns:
        Records "codes", (positions, labels): twice the rank, from 1, plus 1 for a true label; 0 without a target. Equal scores
        have equal ranks.
    """
    labels = decisions.by_label()
    scores, hits = to_numpy(labels.scores), to_numpy(labels.targets == 1)
    counted, finite = to_numpy(labels.counted), to_numpy(labels.finite)
    found = np.ones(scores.shape, np.int32)
    for k in range(scores.shape[-1]):
        known = counted[..., k] & finite[..., k]
        order = np.unique(scores[..., k][known], return_inverse=True)[1].reshape(-1)
        found[..., k][known] = order + 2
        found[..., k][~finite[..., k] & ~hits[..., k]] = order.max(initial=0) + 3
    return records_of({"codes": np.where(counted, 2 * found + hits, 0).astype(np.int32)})


def roc_auc(records: Scores) -> float:
    """Area under the ROC curve: the probability that a positive sample scores above a negative one; ties count one half.

    Averaged over the labels, or over the classes, each against all others. NaN if one has no positive or no negative sample.

    Args:
        records: of `ranks`.
    """
    areas = []
    for positive, negative in _by_rank(records):
        below = negative.cumsum() - negative / 2
        pairs = positive.sum() * negative.sum()
        areas.append(float(positive @ below) / pairs if pairs else math.nan)
    return _mean(np.array(areas))


def average_precision(records: Scores) -> float:
    """Average precision: Σ_k (r_k − r_{k−1}) · p_k with recall r and precision p over decreasing thresholds.

    Averaged over classes or labels; NaN if one has no positive sample.

    Args:
        records: of `ranks`.
    """
    values = []
    for positive, negative in _by_rank(records):
        hits, taken = positive[::-1].cumsum(), (positive + negative)[::-1].cumsum()
        precision = hits / np.maximum(taken, 1)
        values.append(float(positive[::-1] @ precision) / positive.sum() if positive.any() else math.nan)
    return _mean(np.array(values))


def sensitivity(records: Scores, specificity: float = 0.9) -> float:
    """Sensitivity at a given specificity, for a decision between two.

    The fraction of positive samples that score above the threshold at which a fraction `specificity` of the negative samples is
    classified correctly. NaN without positive or without negative samples.

    Args:
        records: of `ranks`.
        specificity: in (0, 1).

    Raises:
        UserError: E131 for several labels or more than two classes.
    """
    pairs = _by_rank(records)
    if len(pairs) > 1:
        message = f"sensitivity is defined for two classes; the outputs have {len(pairs)}"
        raise UserError("E131", message, 'use "balanced_accuracy" or "roc_auc"')
    ((positive, negative),) = pairs
    if not positive.any() or not negative.any():
        return math.nan
    spared = min(math.ceil(specificity * negative.sum()), int(negative.sum()))
    threshold = int(np.searchsorted(negative.cumsum(), spared))
    return float(positive[threshold + 1 :].sum() / positive.sum())


def calibration(decisions: Decisions) -> Scores:
    """What `negative_calibration_error` needs of each sample: Σ (right − confidence) by bin of confidence, and a count."""
    gaps = []
    for part in decisions.parts():
        scores = part.scores.double()
        confidence = scores.softmax(-1).amax(-1) if part.exclusive else scores.abs().sigmoid()
        confidence = confidence.where(part.finite, 1.0)  # sure, and wrong
        gap = ((part.chosen() == part.targets).double() - confidence) * part.counted
        bins = (confidence * _BINS).ceil().long().clamp(1, _BINS) - 1
        gaps.append(torch.zeros(len(part), _BINS, dtype=torch.float64).scatter_add_(1, bins.flatten(1), gap.flatten(1)))
    counts = decisions.counted.flatten(1).sum(1)
    return records_of({"gaps": to_numpy(torch.cat(gaps)), "count": to_numpy(counts)})


def negative_calibration_error(records: Scores) -> float:
    """Negative expected calibration error: −Σ_b n_b / n · |accuracy_b − mean confidence_b|.

    The sum is over 15 bins b of equal width of the probability of the decision taken.

    Args:
        records: of `calibration`.

    Source: Guo, Pleiss, Sun, Weinberger 2017, arXiv:1706.04599, equation 3.
    """
    count = records["count"].sum()
    return -float(np.abs(records["gaps"].sum(0)).sum() / count) if count else math.nan


def _mean_of(decisions: Decisions, scores: Tensor) -> Tensor:
    """Scores of single decisions as scores of samples: (samples,), or (samples, 2) where a sample has several."""
    return scores.flatten() if decisions.single else _sums(scores, decisions.counted)


def _sums(scores: Tensor, counted: Tensor) -> Tensor:
    """(samples, 2): the sum over the counted decisions, and their number."""
    return torch.stack([scores.where(counted, 0.0).flatten(1).sum(1), counted.flatten(1).sum(1).double()], 1)


def _rank(decisions: Decisions, name: str) -> Tensor:
    """How many other candidates score at least as high as the right one, (samples, positions); scores not finite rank last."""
    _check_exclusive(decisions, name)
    own = decisions.scores.gather(-1, decisions.targets.clamp_min(0)[..., None])
    rank = (decisions.scores >= own).sum(-1) - 1
    return rank.where(decisions.finite, torch.iinfo(torch.int64).max // 2)


def _check_exclusive(decisions: Decisions, name: str) -> None:
    if not decisions.exclusive:
        message = f"{name} needs one right class at each position; the targets are labels of their own"
        raise UserError("E131", message, 'use "accuracy", "f1" or "roc_auc", or a loss of classes')


def _counts(records: Scores) -> tuple[Array, bool]:
    """Counts, (labels, 4), from records of `confusion`, and whether the labels are classes that exclude each other."""
    names = records.dtype.names or ()
    if "due" not in names:
        return records[names[0]].sum(0), names[0] == "classes"
    counted = records["due"] != UNLABELLED
    due, found = records["due"][counted], records["found"][counted]
    size = int(max(due.max(initial=0), found.max(initial=0))) + 1
    columns = [np.bincount(part, minlength=size) for part in (due[due == found], found[found >= 0], due)]
    return np.stack([*columns, np.full(size, len(due))], 1), True


def _by_rank(records: Scores) -> list[tuple[Array, Array]]:
    """For each label, the numbers of positive and of negative decisions by rank, from the lowest, as float64."""
    codes = records["codes"].reshape(-1, records["codes"].shape[-1])
    length = 2 * (int(codes.max(initial=0)) // 2 + 1)
    tables = [np.bincount(label, minlength=length).reshape(-1, 2)[1:].astype(np.float64) for label in codes.T]
    return [(table[:, 1], table[:, 0]) for table in tables]


def _mean(values: Array) -> float:
    """The mean; NaN of nothing."""
    return float(values.mean()) if len(values) else math.nan
