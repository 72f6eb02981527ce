"""Metrics of outputs against targets; higher is better for all of them.

Some return one score per sample, others one number for the whole set. Class scores are logits: (samples, classes) for one class
per sample; (samples,) or (samples, 1) for binary classification; (samples, labels) with targets of the same shape for
multi-label classification. If a sample has many targets, those equal to −100 are ignored. Several outputs are a tuple; their
targets are concatenated into one tensor, (samples, numbers).
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mirabelle.numerics.arrays import to_numpy
from mirabelle.numerics.several_outputs import paired
from mirabelle.numerics.target_shapes import are_yes_or_no

LEFT_OUT = -100  # targets with this value are ignored, as by the cross entropy of torch
_BINS = 15
_SPANS = 64  # samples per chunk; the scores of all pairs of tokens take tokens² numbers per sample


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Classification accuracy per sample: 1 if the class with the highest score is the target, else 0.

    Args:
        outputs: scores, (samples, ..., classes).
        targets: class indices, (samples, ...).

    Returns:
        (samples,) for one target per sample; for several, (samples, 2): the number of correct and of counted targets.
    """
    right = (outputs.argmax(dim=-1) == targets).float()
    if targets.ndim == 1:
        return right
    counted = (targets != LEFT_OUT).float()
    return torch.stack([(right * counted).flatten(1).sum(1), counted.flatten(1).sum(1)], 1)


def negative_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Negative mean squared error of each sample: −mean((output − target)²), (samples,)."""
    return -(outputs - targets.reshape(outputs.shape)).square().flatten(1).mean(dim=1)


def negative_absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Negative mean absolute error of each sample: −mean |output − target|, (samples,)."""
    return -(outputs - targets.reshape(outputs.shape)).abs().flatten(1).mean(dim=1)


def fidelity(outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
    """Explained variance of the targets: 1 − Σ (output − target)² / Σ (target − mean)², averaged over the outputs of the model.

    The mean is taken for each number over the samples, so that constant parts of the targets do not count, unless a whole
    output is constant. The fidelity is 1 if all targets are met exactly, 0 if the outputs are as good as the mean, negative if
    they are worse.

    Returns:
        (samples, 2): the contributions of each sample, such that the fidelity is Σ first column / Σ second column.
    """
    explained, total = torch.zeros(2, len(targets), dtype=torch.float64)
    pairs = paired(outputs, targets)
    for output, target in pairs:
        target = target.double()  # noqa: PLW2901 (so that the mean of equal numbers is exact)
        candidates = ((target - target.mean(0)).square().sum(1), target.square().sum(1), torch.ones_like(explained))
        variance = next(candidate for candidate in candidates if bool(candidate.any()))
        total += variance / variance.sum()
        explained += (variance - (output.double() - target).square().sum(1)) / variance.sum()
    return torch.stack([explained, total], 1) / len(pairs)


def cosine_similarity(outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
    """Cosine similarity of each sample: ⟨output, target⟩ / (‖output‖ · ‖target‖), averaged over the outputs, (samples,)."""
    return torch.stack([F.cosine_similarity(output, target) for output, target in paired(outputs, targets)]).mean(0)


def negative_relative_error(outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
    """Negative relative error of each sample: −‖output − target‖ / ‖target‖, averaged over the outputs, (samples,)."""
    pairs = paired(outputs, targets)
    smallest = torch.finfo(torch.float32).tiny
    errors = [(output - target).norm(dim=1) / target.norm(dim=1).clamp_min(smallest) for output, target in pairs]
    return -torch.stack(errors).mean(0)


def negative_log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of the targets of each sample.

    Args:
        outputs: logits, (samples, ..., classes); p = softmax(outputs).
        targets: class indices, (samples, ...).

    Returns:
        (samples, 2): −Σ log p(target), and the number of counted targets.
    """
    losses = F.cross_entropy(outputs.flatten(0, -2).float(), targets.flatten(), reduction="none", ignore_index=LEFT_OUT)
    counted = (targets != LEFT_OUT).float()
    return torch.stack([losses.reshape(len(targets), -1).sum(1), counted.reshape(len(targets), -1).sum(1)], 1)


def exact_match(outputs: Tensor, targets: Tensor) -> Tensor:
    """Exact match of spans: 1 if both the first and the last token are correct, else 0; (samples,).

    Args:
        outputs: scores of each token as the first and as the last token of the span, (samples, tokens, 2).
        targets: positions of the first and the last token, (samples, 2); further columns are ignored.
    """
    return (span_of(outputs) == targets[:, :2]).all(1).float()


def span_f1(outputs: Tensor, targets: Tensor) -> Tensor:
    """F1 score of the predicted span A and the target span B: 2 · |A ∩ B| / (|A| + |B|) tokens, (samples,).

    Args:
        outputs: scores of each token as the first and as the last token of the span, (samples, tokens, 2).
        targets: positions of the first and the last token, (samples, 2); further columns are ignored.

    Source: Rajpurkar, Zhang, Lopyrev, Liang 2016, arXiv:1606.05250, section 6.1, over tokens instead of words.
    """
    spans, targets = span_of(outputs), targets[:, :2]
    shared = (torch.minimum(spans[:, 1], targets[:, 1]) - torch.maximum(spans[:, 0], targets[:, 0]) + 1).clamp_min(0)
    lengths = (spans[:, 1] - spans[:, 0] + 1) + (targets[:, 1] - targets[:, 0] + 1)
    return 2 * shared / lengths


def span_of(outputs: Tensor, longest: int = 30, within: Tensor | None = None) -> Tensor:
    """First and last token of the span with the highest score: argmax start_i + end_j subject to i ≤ j < i + longest.

    Args:
        outputs: scores of each token as the first and as the last token of the span, (samples, tokens, 2).
        longest: greatest length of a span in tokens.
        within: (samples, tokens), True for the tokens that a span may contain; None: all.

    Returns:
        Positions, (samples, 2).
    """
    if within is not None:
        outputs = outputs.masked_fill(~within[:, :, None], -math.inf)
    tokens = outputs.shape[1]
    allowed = torch.ones(tokens, tokens, dtype=torch.bool, device=outputs.device).triu().tril(longest - 1)
    best = torch.cat(
        [
            (part[:, :, None, 0] + part[:, None, :, 1]).masked_fill(~allowed, -math.inf).flatten(1).argmax(1)
            for part in torch.split(outputs, _SPANS)
        ]
    )
    return torch.stack([best // tokens, best % tokens], 1)


def transcribed(outputs: Tensor, targets: Tensor) -> Tensor:
    """Accuracy of transcriptions: target length minus edit distance to the greedy CTC decoding, and target length.

    Args:
        outputs: scores, (samples, frames, symbols); symbol 0 is the blank.
        targets: symbols from 1, padded with −100, (samples, length).

    Returns:
        (samples, 2): length − edits, and length.

    Source: Graves, Fernández, Gomez, Schmidhuber 2006, doi:10.1145/1143844.1143891; distance of Levenshtein 1966.
    """
    pieces = []
    for scores, target in zip(to_numpy(outputs.float()), targets, strict=True):
        expected = target[target != LEFT_OUT].tolist()
        pieces.append([len(expected) - edits(ctc_greedy_decode(scores), expected), len(expected)])
    return torch.tensor(pieces, dtype=torch.float64)


def ctc_greedy_decode(scores: np.ndarray) -> list[int]:
    """Greedy CTC decoding: the best symbol of every frame, with repetitions merged and blanks (symbol 0) removed.

    Args:
        scores: (frames, symbols).

    Example:
        >>> ctc_greedy_decode(np.eye(3)[[0, 1, 1, 0, 1, 2]])
        [1, 1, 2]
    """
    path = scores.argmax(-1)
    begins = np.flatnonzero(np.diff(path, prepend=-1))
    return [int(symbol) for symbol in path[begins] if symbol]


def edits(one: list[int], other: list[int]) -> int:
    """Levenshtein distance: the smallest number of insertions, deletions and substitutions that turn one list into the other.

    Example:
        >>> edits([1, 2, 3], [1, 3, 4])
        2
    """
    row = list(range(len(other) + 1))
    for k, symbol in enumerate(one, start=1):
        before, row[0] = row[0], k
        for j, other_symbol in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (symbol != other_symbol))
    return row[-1]


def hit_rate(outputs: Tensor, targets: Tensor, k: int = 10) -> Tensor:
    """Hit rate at k: 1 if the correct candidate ranks among the first k, else 0; (samples,). Ties count against it.

    Args:
        outputs: scores of the candidates, (samples, candidates).
        targets: index of the correct candidate, (samples,).
        k: length of the list of recommendations.
    """
    return (_rank(outputs, targets) < k).float()


def ndcg(outputs: Tensor, targets: Tensor, k: int = 10) -> Tensor:
    """Normalized discounted cumulative gain at k, with one correct candidate per sample.

    It is 1 / log₂(rank + 2) if the rank of the correct candidate, counted from 0, is below k, else 0.

    Args:
        outputs: scores of the candidates, (samples, candidates).
        targets: index of the correct candidate, (samples,).
        k: length of the list of recommendations.

    Returns:
        (samples,).

    Source: Järvelin, Kekäläinen 2002, doi:10.1145/582415.582418, with one relevant item.
    """
    rank = _rank(outputs, targets)
    return torch.where(rank < k, 1 / torch.log2(rank + 2.0), 0.0)


def _rank(outputs: Tensor, targets: Tensor) -> Tensor:
    own = outputs.gather(1, targets[:, None])
    return (outputs >= own).sum(1) - 1


def roc_auc(outputs: Tensor, targets: Tensor) -> float:
    """Area under the ROC curve: the probability that a positive sample scores above a negative one.

    Averaged over the labels, or over the classes of a multi-class problem, each against all others. NaN if a class has no
    positive or no negative sample.
    """
    from scipy.stats import rankdata

    scores, hits = _by_label(outputs, targets)
    areas = []
    for score, hit in zip(scores.T, hits.T, strict=True):
        positive, negative = int(hit.sum()), int((~hit).sum())
        if not positive or not negative:
            return math.nan
        ranks = rankdata(score)
        areas.append((float(ranks[hit].sum()) - positive * (positive + 1) / 2) / (positive * negative))
    return float(np.mean(areas))


def average_precision(outputs: Tensor, targets: Tensor) -> float:
    """Average precision: Σ_k (r_k − r_{k−1}) · p_k with recall r and precision p over decreasing thresholds.

    Averaged over classes or labels; NaN if one has no positive sample.
    """
    from sklearn.metrics import average_precision_score

    scores, hits = _by_label(outputs, targets)
    if not hits.any(0).all():
        return math.nan
    return float(np.mean([average_precision_score(hit, score) for score, hit in zip(scores.T, hits.T, strict=True)]))


def f1(outputs: Tensor, targets: Tensor) -> float:
    """F1 score: 2 · TP / (2 · TP + FP + FN), 0 for 0 / 0; of the positive class, or averaged over classes or labels."""
    hits, predicted = _decided(outputs, targets)
    right, wrong = (predicted & hits).sum(0), (predicted ^ hits).sum(0)
    return float(np.mean(2 * right / np.maximum(2 * right + wrong, 1)))


def balanced_accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Balanced accuracy: the recall of each class, averaged over the classes; NaN if a class has no sample."""
    hits, predicted = _decided(outputs, targets)
    if hits.shape[1] == 1:
        hits, predicted = np.concatenate([hits, ~hits], 1), np.concatenate([predicted, ~predicted], 1)
    if not hits.any(0).all():
        return math.nan
    return float(np.mean((predicted & hits).sum(0) / hits.sum(0)))


def sensitivity(outputs: Tensor, targets: Tensor, specificity: float = 0.9) -> float:
    """Sensitivity at a given specificity, for binary classification.

    The fraction of positive samples that score above the threshold at which a fraction `specificity` of the negative samples is
    classified correctly. NaN without positive or without negative samples.
    """
    scores, hits = _by_label(outputs, targets)
    score, hit = scores[:, 0], hits[:, 0]
    if scores.shape[1] != 1 or hit.all() or not hit.any():
        return math.nan
    negatives = np.sort(score[~hit])
    threshold = negatives[min(math.ceil(specificity * len(negatives)), len(negatives)) - 1]
    return float((score[hit] > threshold).mean())


def negative_calibration_error(outputs: Tensor, targets: Tensor) -> float:
    """Negative expected calibration error: −Σ_b n_b / n · |accuracy_b − mean confidence_b|.

    The sum is over 15 bins b of equal width of the probability of the predicted class.

    Source: Guo, Pleiss, Sun, Weinberger 2017, arXiv:1706.04599, equation 3.
    """
    if are_yes_or_no(outputs, targets):
        positive = outputs.double().sigmoid().reshape(targets.shape)
        confidence = torch.maximum(positive, 1 - positive).flatten()
        right = ((positive > 0.5) == targets.bool()).flatten()  # noqa: PLR2004 (more likely than not)
    else:
        confidence, predicted = outputs.double().softmax(-1).max(-1)
        right = predicted == targets
    bins = (confidence * _BINS).ceil().long().clamp(1, _BINS) - 1
    gaps = torch.zeros(_BINS, dtype=torch.float64).index_add_(0, bins, right.double() - confidence)
    return -float(gaps.abs().sum()) / len(confidence)


def r2(outputs: Tensor, targets: Tensor) -> float:
    """Coefficient of determination: 1 − Σ (target − output)² / Σ (target − mean)²; NaN if all targets are equal."""
    targets = targets.double().reshape(outputs.shape)
    variance = float((targets - targets.mean(0)).square().sum())
    return 1 - float((targets - outputs.double()).square().sum()) / variance if variance else math.nan


def _by_label(outputs: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Scores and binary targets, each (samples, labels): one label for binary problems, otherwise one per class or label."""
    if are_yes_or_no(outputs, targets):
        return to_numpy(outputs.double().reshape(len(outputs), -1)), to_numpy(targets.bool().reshape(len(targets), -1))
    scores = outputs.double()
    if outputs.shape[1] == 2:  # noqa: PLR2004 (two classes: the score of the second against the first)
        return to_numpy(scores[:, 1:] - scores[:, :1]), to_numpy((targets == 1)[:, None])
    return to_numpy(scores.softmax(-1)), to_numpy(F.one_hot(targets, outputs.shape[1]).bool())


def _decided(outputs: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Binary targets and predictions, each (samples, labels)."""
    scores, hits = _by_label(outputs, targets)
    if hits.shape[1] == 1 or outputs.shape == targets.shape:
        return hits, scores > 0
    return hits, to_numpy(F.one_hot(outputs.argmax(-1), outputs.shape[1]).bool())
