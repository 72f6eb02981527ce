"""BLEU by sacrebleu from counts of single sentences, so that confidence intervals and paired tests can resample sentences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from mirabelle.errors import UserError
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.numerics.statistics import Scores

_ORDERS = 4  # n-grams of 1 to 4 words


def sentence_counts(decode: Callable[[list[int]], str], sequences: Tensor, targets: Tensor) -> Scores:
    """The counts that BLEU needs of each sentence, (samples, 10).

    These are, for n-grams of 1 to 4 words, the number of matches and of all n-grams, then the words of the sentence and of its
    reference.

    Args:
        decode: symbols -> text.
        sequences: generated sequences, padded with −100, (samples, length).
        targets: reference sequences, padded with −100; their length may differ.
    """
    metric = library().BLEU(effective_order=True)  # does not change the counts
    rows = []
    for written, due in zip(sequences, targets, strict=True):
        texts = [decode(part[part != UNLABELLED].tolist()) for part in (written, due)]
        score = metric.sentence_score(texts[0], texts[1:])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return np.array(rows, np.float64)


def corpus_bleu(counts: Scores) -> float:
    """BLEU in [0, 1] of a set of sentences, from their counts (samples, 10)."""
    sums = counts.sum(0).astype(int).tolist()
    right, total, (words, due) = sums[:_ORDERS], sums[_ORDERS : 2 * _ORDERS], sums[2 * _ORDERS :]
    score = library().BLEU.compute_bleu(right, total, words, due, smooth_method="exp")
    return float(score.score) / 100


def library() -> Any:
    """sacrebleu's metrics.

    Raises:
        UserError: E160 if sacrebleu is not installed.
    """
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise UserError("E160", f"BLEU needs sacrebleu: {error}", "pip install 'mirabelle[translation]'") from error
    return metrics
