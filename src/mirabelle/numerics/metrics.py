"""How good outputs are: one score a sample, or one number for a whole set; higher = better for all.

Class scores are logits: (samples, classes) for one class a sample, (samples,) or (samples, 1) for yes or no, (samples, labels)
with targets of the same shape for several labels. Targets of −100 are left out where a sample has many. Several outputs are a
tuple, whose targets lie one behind the other, (samples, numbers).
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mirabelle.numerics.several_outputs import paired

LEFT_OUT = -100
_BINS = 15
_SPANS = 64  # samples whose pairs of tokens are looked at together


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the class of highest score is the target, (samples,); of many targets a sample (right ones, all), (samples, 2).

    Args:
        outputs: scores, (samples, ..., classes).
        targets: class indices, (samples, ...).
    """
    right = (outputs.argmax(dim=-1) == targets).float()
    if targets.ndim == 1:
        return right
    counted = (targets != LEFT_OUT).float()
    return torch.stack([(right * counted).flatten(1).sum(1), counted.flatten(1).sum(1)], 1)


def negative_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """−mean((output − target)²) of each sample, (samples,)."""
    return -(outputs - targets.reshape(outputs.shape)).square().flatten(1).mean(dim=1)


def negative_absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """−mean |output − target| of each sample, (samples,)."""
    return -(outputs - targets.reshape(outputs.shape)).abs().flatten(1).mean(dim=1)


def fidelity(outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
    """How much of what the targets tell between samples the outputs tell, too: 1 − Σ (output − target)² / Σ (target − mean)².

    Mean over the outputs; the mean of the targets is that of each number over the samples, so that what is the same for all
    samples counts for nothing, unless all of an output is. 1 where all is met, 0 where the mean would do as well, and below it.

    Returns:
        (samples, 2): the parts of each sample in the sums, so that Σ first / Σ second is the fidelity.
    """
    met, due_in_all = torch.zeros(2, len(targets), dtype=torch.float64)
    pairs = paired(outputs, targets)
    for output, due in pairs:
        due = due.double()  # noqa: PLW2901 (in which the mean of equal numbers is that number)
        spreads = ((due - due.mean(0)).square().sum(1), due.square().sum(1), torch.ones_like(met))
        spread = next(found for found in spreads if bool(found.any()))
        due_in_all += spread / spread.sum()
        met += (spread - (output.double() - due).square().sum(1)) / spread.sum()
    return torch.stack([met, due_in_all], 1) / len(pairs)


def cosine_similarity(outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
    """⟨output, target⟩ / (‖output‖ · ‖target‖) of each sample, mean over the outputs, (samples,)."""
    return torch.stack([F.cosine_similarity(output, due) for output, due in paired(outputs, targets)]).mean(0)


def negative_relative_error(outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
    """−‖output − target‖ / ‖target‖ of each sample, mean over the outputs, (samples,)."""
    pairs = paired(outputs, targets)
    smallest = torch.finfo(torch.float32).tiny
    errors = [(output - due).norm(dim=1) / due.norm(dim=1).clamp_min(smallest) for output, due in pairs]
    return -torch.stack(errors).mean(0)


def negative_log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    """(−Σ log p(target), targets) of each sample, (samples, 2); p = softmax of the outputs, (samples, ..., classes)."""
    losses = F.cross_entropy(outputs.flatten(0, -2).float(), targets.flatten(), reduction="none", ignore_index=LEFT_OUT)
    counted = (targets != LEFT_OUT).float()
    return torch.stack([losses.reshape(len(targets), -1).sum(1), counted.reshape(len(targets), -1).sum(1)], 1)


def exact_match(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where both ends of the span are right, (samples,).

    Args:
        outputs: scores of every token to be the first, and the last, of the span, (samples, tokens, 2).
        targets: places of the first and the last token, (samples, 2); further columns are left alone.
    """
    return (span_of(outputs) == targets[:, :2]).all(1).float()


def span_f1(outputs: Tensor, targets: Tensor) -> Tensor:
    """2 · |A ∩ B| / (|A| + |B|) of the tokens of both spans, (samples,); arguments as of `exact_match`.

    Source: Rajpurkar, Zhang, Lopyrev, Liang 2016, arXiv:1606.05250, section 6.1, over tokens instead of words.
    """
    found, targets = span_of(outputs), targets[:, :2]
    shared = (torch.minimum(found[:, 1], targets[:, 1]) - torch.maximum(found[:, 0], targets[:, 0]) + 1).clamp_min(0)
    lengths = (found[:, 1] - found[:, 0] + 1) + (targets[:, 1] - targets[:, 0] + 1)
    return 2 * shared / lengths


def span_of(outputs: Tensor, longest: int = 30, within: Tensor | None = None) -> Tensor:
    """First and last token of the span of highest score, argmax start_i + end_j with i ≤ j < i + longest.

    (samples, tokens, 2) → (samples, 2); of the tokens `within`, (samples, tokens), alone, where it is given.
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
    """(length − edits, length) of each sample, (samples, 2), edits between the target and the likeliest path.

    The path takes the best symbol of every frame, repetitions joined, blanks (symbol 0) dropped.

    Args:
        outputs: scores, (samples, frames, symbols).
        targets: symbols from 1, padded with −100, (samples, length).

    Source: Graves, Fernández, Gomez, Schmidhuber 2006, doi:10.1145/1143844.1143891; distance of Levenshtein 1966.
    """
    pieces = []
    for scores, target in zip(outputs.detach().float().numpy(), targets, strict=True):
        due = target[target != LEFT_OUT].tolist()
        pieces.append([len(due) - edits(ctc_greedy_decode(scores), due), len(due)])
    return torch.tensor(pieces, dtype=torch.float64)


def ctc_greedy_decode(scores: np.ndarray) -> list[int]:
    """The best symbol of every frame, repetitions joined, blanks (symbol 0) dropped; scores (frames, symbols).

    Example:
        >>> ctc_greedy_decode(np.eye(3)[[0, 1, 1, 0, 1, 2]])
        [1, 1, 2]
    """
    path = scores.argmax(-1)
    begins = np.flatnonzero(np.diff(path, prepend=-1))
    return [int(symbol) for symbol in path[begins] if symbol]


def edits(one: list[int], other: list[int]) -> int:
    """The least number of insertions, deletions and replacements that make one list the other.

    Example:
        >>> edits([1, 2, 3], [1, 3, 4])
        2
    """
    row = list(range(len(other) + 1))
    for k, symbol in enumerate(one, start=1):
        before, row[0] = row[0], k
        for j, due in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (symbol != due))
    return row[-1]


def hit_rate(outputs: Tensor, targets: Tensor, k: int = 10) -> Tensor:
    """1 where fewer than k other candidates score at least as high as the right one, (samples,).

    Args:
        outputs: scores of the candidates, (samples, candidates).
        targets: index of the right one, (samples,).
        k: how many are shown.
    """
    return (_rank(outputs, targets) < k).float()


def ndcg(outputs: Tensor, targets: Tensor, k: int = 10) -> Tensor:
    """1 / log₂(rank + 2) where the rank of the right candidate, from 0, is below k, else 0, (samples,); as `hit_rate`.

    Source: Järvelin, Kekäläinen 2002, doi:10.1145/582415.582418, with one relevant item.
    """
    rank = _rank(outputs, targets)
    return torch.where(rank < k, 1 / torch.log2(rank + 2.0), 0.0)


def _rank(outputs: Tensor, targets: Tensor) -> Tensor:
    own = outputs.gather(1, targets[:, None])
    return (outputs >= own).sum(1) - 1


def roc_auc(outputs: Tensor, targets: Tensor) -> float:
    """Probability that a positive scores above a negative; mean over classes, each against the rest, or over labels.

    NaN where a class, or its rest, has no sample.
    """
    from scipy.stats import rankdata

    scores, hits = _by_label(outputs, targets)
    found = []
    for score, hit in zip(scores.T, hits.T, strict=True):
        positive, negative = int(hit.sum()), int((~hit).sum())
        if not positive or not negative:
            return math.nan
        ranks = rankdata(score)
        found.append((float(ranks[hit].sum()) - positive * (positive + 1) / 2) / (positive * negative))
    return float(np.mean(found))


def average_precision(outputs: Tensor, targets: Tensor) -> float:
    """Σ_k (r_k − r_{k−1}) · p_k over falling thresholds; mean over classes or labels. NaN without positives."""
    from sklearn.metrics import average_precision_score

    scores, hits = _by_label(outputs, targets)
    if not hits.any(0).all():
        return math.nan
    return float(np.mean([average_precision_score(hit, score) for score, hit in zip(scores.T, hits.T, strict=True)]))


def f1(outputs: Tensor, targets: Tensor) -> float:
    """2 · TP / (2 · TP + FP + FN): of the positives, or mean over classes or labels; 0 where nothing is due or found."""
    hits, found = _decided(outputs, targets)
    right, wrong = (found & hits).sum(0), (found ^ hits).sum(0)
    return float(np.mean(2 * right / np.maximum(2 * right + wrong, 1)))


def balanced_accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Mean over classes of the share of their samples that is found; NaN where a class has none."""
    hits, found = _decided(outputs, targets)
    if hits.shape[1] == 1:
        hits, found = np.concatenate([hits, ~hits], 1), np.concatenate([found, ~found], 1)
    if not hits.any(0).all():
        return math.nan
    return float(np.mean((found & hits).sum(0) / hits.sum(0)))


def sensitivity(outputs: Tensor, targets: Tensor, specificity: float = 0.9) -> float:
    """Share of the positives above the threshold under which `specificity` of the negatives lie; NaN where either lacks."""
    scores, hits = _by_label(outputs, targets)
    score, hit = scores[:, 0], hits[:, 0]
    if scores.shape[1] != 1 or hit.all() or not hit.any():
        return math.nan
    negatives = np.sort(score[~hit])
    threshold = negatives[min(math.ceil(specificity * len(negatives)), len(negatives)) - 1]
    return float((score[hit] > threshold).mean())


def negative_calibration_error(outputs: Tensor, targets: Tensor) -> float:
    """−Σ_b n_b / n · |share right − mean confidence| over 15 bins of equal width of the decided class's probability.

    Source: Guo, Pleiss, Sun, Weinberger 2017, arXiv:1706.04599, equation 3.
    """
    if outputs.shape == targets.shape or outputs.shape[1:] == (1,):
        positive = outputs.double().sigmoid().reshape(targets.shape)
        confidence = torch.maximum(positive, 1 - positive).flatten()
        right = ((positive > 0.5) == targets.bool()).flatten()  # noqa: PLR2004 (likelier than not)
    else:
        confidence, decided = outputs.double().softmax(-1).max(-1)
        right = decided == targets
    places = (confidence * _BINS).ceil().long().clamp(1, _BINS) - 1
    gaps = torch.zeros(_BINS, dtype=torch.float64).index_add_(0, places, right.double() - confidence)
    return -float(gaps.abs().sum()) / len(confidence)


def r2(outputs: Tensor, targets: Tensor) -> float:
    """1 − Σ (target − output)² / Σ (target − mean)²; NaN where all targets are equal."""
    due = targets.double().reshape(outputs.shape)
    spread = float((due - due.mean(0)).square().sum())
    return 1 - float((due - outputs.double()).square().sum()) / spread if spread else math.nan


def _by_label(outputs: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Scores and whether they should be high, (samples, labels): one label for yes or no, all classes where there are more."""
    if outputs.shape == targets.shape or outputs.shape[1:] == (1,):
        return outputs.double().reshape(len(outputs), -1).numpy(), targets.bool().reshape(len(targets), -1).numpy()
    scores = outputs.double()
    if outputs.shape[1] == 2:  # noqa: PLR2004 (the second against the first)
        return (scores[:, 1:] - scores[:, :1]).numpy(), (targets == 1)[:, None].numpy()
    return scores.softmax(-1).numpy(), F.one_hot(targets, outputs.shape[1]).bool().numpy()


def _decided(outputs: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Which labels are due, and which are chosen, (samples, labels)."""
    scores, hits = _by_label(outputs, targets)
    if hits.shape[1] == 1 or outputs.shape == targets.shape:
        return hits, scores > 0
    return hits, F.one_hot(outputs.argmax(-1), outputs.shape[1]).bool().numpy()
