"""Metrics of numbers, spans, transcriptions and outputs of another model; higher is better for all of them.

Each returns one score or one record for each sample. Several outputs are a tuple; their targets are concatenated into one
tensor, (samples, numbers). Outputs that are not finite get the worst score there is, or NaN where there is no worst. Metrics of
classes and labels are in `decision_metrics`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mirabelle.numerics.arrays import to_numpy
from mirabelle.numerics.several_outputs import UNLABELLED, paired
from mirabelle.numerics.statistics import Scores, records_of
from mirabelle.numerics.target_shapes import aligned

_SPANS = 64  # samples per chunk; the scores of all pairs of tokens take tokens² numbers per sample


def negative_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Negative mean squared error of each sample: −mean((output − target)²), (samples,)."""
    return -_residuals(outputs, targets).square().mean(1)


def negative_absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Negative mean absolute error of each sample: −mean |output − target|, (samples,)."""
    return -_residuals(outputs, targets).abs().mean(1)


def squared_errors(outputs: Tensor, targets: Tensor) -> Scores:
    """What `r2` needs of each sample: records "error", the squared errors, and "target", each (numbers,)."""
    errors = _residuals(outputs, targets).square()
    return records_of({"error": to_numpy(errors), "target": to_numpy(targets.double().reshape(errors.shape))})


def r2(records: Scores) -> float:
    """Coefficient of determination, averaged over the numbers: 1 − Σ (target − output)² / Σ (target − mean)².

    A number whose target is the same for all samples has none and does not count; NaN if all are so.

    Args:
        records: of `squared_errors`.
    """
    targets = records["target"]
    varied = (targets != targets[0]).any(0)
    if not varied.any():
        return math.nan
    variances = np.square(targets - targets.mean(0)).sum(0)[varied]
    return float((1 - records["error"].sum(0)[varied] / variances).mean())


def constant_numbers(targets: Tensor) -> str:
    """Why r² is not defined for targets, (samples, ...): some are the same for all samples; "" if none is."""
    varied = (targets != targets[:1]).reshape(len(targets), -1).any(0)
    constant = int((~varied).sum())
    return f"{constant} of {len(varied)} numbers are the same in all {len(targets)} samples" if constant else ""


def _residuals(outputs: Tensor, targets: Tensor) -> Tensor:
    """Output − target as float64, (samples, numbers); NaN where an output is not finite."""
    found = outputs.double().where(outputs.isfinite(), math.nan)
    return (found - aligned(outputs, targets)).reshape(len(outputs), -1)


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
    pairs = paired(outputs, targets)
    return torch.stack([F.cosine_similarity(output, target).nan_to_num(-1.0) for output, target in pairs]).mean(0)


def negative_relative_error(outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
    """Negative relative error of each sample: −‖output − target‖ / ‖target‖, averaged over the outputs, (samples,)."""
    pairs = paired(outputs, targets)
    smallest = torch.finfo(torch.float32).tiny
    errors = [(output - target).norm(dim=1) / target.norm(dim=1).clamp_min(smallest) for output, target in pairs]
    return -torch.stack(errors).mean(0)


def exact_match(outputs: Tensor, targets: Tensor) -> Tensor:
    """Exact match of spans: 1 if both the first and the last token are correct, else 0.

    Args:
        outputs: scores of each token as the first and as the last token of the span, (samples, tokens, 2).
        targets: positions of the first and the last token, (samples, 2); further columns are ignored.

    Returns:
        (samples,).
    """
    right = (span_of(outputs) == targets[:, :2]).all(1) & _finite(outputs)
    return right.double()


def span_f1(outputs: Tensor, targets: Tensor) -> Tensor:
    """F1 score of the predicted span A and the target span B: 2 · |A ∩ B| / (|A| + |B|) tokens.

    Args:
        outputs: scores of each token as the first and as the last token of the span, (samples, tokens, 2).
        targets: positions of the first and the last token, (samples, 2); further columns are ignored.

    Returns:
        (samples,).

    Source: Rajpurkar, Zhang, Lopyrev, Liang 2016, arXiv:1606.05250, section 6.1, over tokens instead of words.
    """
    spans, targets = span_of(outputs), targets[:, :2]
    shared = (torch.minimum(spans[:, 1], targets[:, 1]) - torch.maximum(spans[:, 0], targets[:, 0]) + 1).clamp_min(0)
    lengths = (spans[:, 1] - spans[:, 0] + 1) + (targets[:, 1] - targets[:, 0] + 1)
    return torch.where(_finite(outputs), 2 * shared / lengths, 0.0)


def _finite(outputs: Tensor) -> Tensor:
    """Which samples have finite outputs only, (samples,)."""
    return outputs.isfinite().flatten(1).all(1)


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
        expected = target[target != UNLABELLED].tolist()
        wrong = edits(ctc_greedy_decode(scores), expected) if np.isfinite(scores).all() else len(expected)
        pieces.append([len(expected) - wrong, len(expected)])
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
