"""What a model is judged by: scores of samples, higher = better, so that intervals and paired tests are honest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mirabelle.errors import UserError, did_you_mean
from mirabelle.numerics import metrics
from mirabelle.numerics.arrays import to_numpy
from mirabelle.numerics.statistics import (
    Scores,
    Statistic,
    mean_interval,
    paired_difference,
    paired_p_value,
    resampled_difference,
    resampled_interval,
)
from mirabelle.records.functions import function_from
from mirabelle.task.profile import MeasuredMetric

PerSample = Callable[[Any, Tensor], Tensor | Scores]  # of the outputs, a tuple where there are several, and the targets
OverSet = Callable[[Any, Tensor], float | Tensor]
_SUM_AND_COUNT = 2  # columns


def _ratio(scores: Scores) -> float:
    total, count = scores.sum(0)
    return float(total / count) if count else math.nan


@dataclass(frozen=True)
class Metric:
    """A function of outputs and targets to what each sample shows, and how that becomes one number.

    Args:
        name: as it is told.
        scores: (outputs, targets) -> one score a sample, (samples,), whose mean counts; or (sum, count) of each sample,
            (samples, 2), where Σ sum / Σ count does; higher = better.
        statistic: of all scores, instead of these.
        of_sequences: whether the outputs are what the model writes (`Task.generation`), symbols filled up with −100, instead of
            its scores.

    Example:
        >>> accuracy = Metric.of("accuracy")
        >>> scores = accuracy.of_samples(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
        >>> scores.tolist(), accuracy.value(scores)
        ([1.0, 0.0], 0.5)
    """

    name: str
    scores: PerSample
    statistic: Statistic | None = None
    of_sequences: bool = False

    @staticmethod
    def of(metric: str | PerSample | Metric, folder: Path = Path()) -> Metric:
        """A metric by name, or from a function of the user's that gives scores of samples.

        Names are "accuracy" (of one class or of many tokens a sample), "balanced_accuracy", "f1", "roc_auc",
        "average_precision", "sensitivity" ("sensitivity@0.9": at that specificity), "negative_calibration_error";
        "negative_squared_error", "negative_absolute_error", "r2"; "exact_match", "span_f1"; "negative_perplexity",
        "character_accuracy"; "hit_rate" and "ndcg" ("hit_rate@10"); "fidelity", "cosine_similarity" and
        "negative_relative_error", of one output or of several; and "pkg.mod:function" or "./file.py:function", of a function
        that gives scores, or of a `Metric`.

        Args:
            metric: as above; a model of several outputs gives the function a tuple.
            folder: against which the path of a file is read.

        Raises:
            UserError: E110 when the name is not known, E120 when no such function is found.
        """
        if isinstance(metric, str) and ":" in metric:
            metric = function_from(metric, folder)
        if isinstance(metric, Metric):
            return metric
        if not isinstance(metric, str):
            return Metric(getattr(metric, "__name__", type(metric).__name__), metric)
        name, at, setting = metric.partition("@")
        if name not in _KNOWN:
            raise UserError("E110", f'metric "{metric}" is not known', did_you_mean(name, _KNOWN))
        found = _KNOWN[name]
        return found if not at else _set(metric, name, setting)

    @staticmethod
    def over_set(function: OverSet, name: str | None = None) -> Metric:
        """A metric of a whole set, a function of torchmetrics or scikit-learn: (outputs, targets) of all samples -> one number.

        Intervals and tests come from the set drawn anew, so the function is called some thousand times.

        Example:
            >>> largest = Metric.over_set(lambda outputs, targets: outputs.max(), "largest")
            >>> largest.value(largest.of_samples(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1])))
            3.0
        """
        told = name or str(getattr(function, "__name__", type(function).__name__))
        return Metric(told, _pairs, partial(_of_pairs, function))

    @staticmethod
    def bleu(decode: Callable[[list[int]], str]) -> Metric:
        """BLEU of sacrebleu, as a fraction: what a model writes against the targets, one reference each, as text.

        Args:
            decode: symbols to text, without marks of beginning and end.

        Raises:
            UserError: E160 without sacrebleu.

        Source: Papineni, Roukos, Ward, Zhu 2002, doi:10.3115/1073083.1073135; Post 2018, arXiv:1804.08771.
        """
        from mirabelle.task.bleu import corpus_bleu, library, sentence_counts

        library()
        return Metric("bleu", partial(sentence_counts, decode), corpus_bleu, of_sequences=True)

    def value(self, scores: Scores) -> float:
        """The metric of a set of samples."""
        statistic = self._statistic(scores)
        return float(scores.mean()) if statistic is None else statistic(scores)

    def measured(self, scores: Scores) -> MeasuredMetric:
        """The metric of a set of samples with its 95 % interval."""
        value, low, high = self.interval(scores)
        if not math.isfinite(value):
            raise UserError(
                "E121", f"metric {self.name} is {value} on {len(scores)} samples", "see which outputs are not finite"
            )
        return MeasuredMetric(self.name, value, low, high, len(scores))

    def interval(self, scores: Scores) -> tuple[float, float, float]:
        """(value, low, high), 95 %."""
        statistic = self._statistic(scores)
        return mean_interval(scores) if statistic is None else resampled_interval(scores, statistic)

    def difference(self, before: Scores, after: Scores) -> tuple[float, float, float]:
        """after − before on the same samples, with its 95 % interval."""
        statistic = self._statistic(before)
        return paired_difference(before, after) if statistic is None else resampled_difference([before], [after], statistic)[:3]

    def p_value(self, before: Sequence[Scores], after: Sequence[Scores]) -> float:
        """That models as good as each other show such a mean difference on the same samples; a pair of scores each seed."""
        statistic = self._statistic(before[0])
        if statistic is None:
            return paired_p_value(np.mean(before, axis=0), np.mean(after, axis=0))
        return resampled_difference(before, after, statistic)[3]

    def of_samples(self, outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Scores:
        """What each sample shows, as float64, or as a record of its output and its target.

        Raises:
            UserError: E131 when that is not one entry a sample.
        """
        with torch.no_grad():
            scores = self.scores(outputs, targets)
        if isinstance(scores, np.ndarray):
            return scores
        due = targets.shape[:1] if self.statistic is None else scores.shape[:1]
        if scores.shape not in (due, (*due, _SUM_AND_COUNT)) or len(scores) != len(targets):
            raise UserError(
                "E131",
                f"metric {self.name} gave shape {tuple(scores.shape)} for {len(targets)} samples",
                "return one score a sample, shape (batch,), or make it a metric of the set: Metric.over_set(function)",
            )
        return to_numpy(scores.double())

    def _statistic(self, scores: Scores) -> Statistic | None:
        """None where the mean counts."""
        return self.statistic or (_ratio if scores.ndim == _SUM_AND_COUNT else None)


def _pairs(outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Scores:
    """Records of output and target; of several outputs "outputs.0", "outputs.1", …"""
    several = {f"outputs.{k}": part for k, part in enumerate(outputs)} if isinstance(outputs, tuple) else {"outputs": outputs}
    arrays = {name: to_numpy(part.float()) for name, part in several.items()}
    return records_of({**arrays, "targets": to_numpy(targets)})


def records_of(parts: Mapping[str, npt.NDArray[Any]]) -> Scores:
    """One record a sample, of arrays (samples, ...) by name."""
    shapes = [(name, part.dtype, part.shape[1:]) for name, part in parts.items()]
    records = np.empty(len(next(iter(parts.values()))), shapes)
    for name, part in parts.items():
        records[name] = part
    return records


def _of_pairs(function: OverSet, records: Scores) -> float:
    names = sorted(set(records.dtype.names or ()) - {"targets"}, key=lambda name: int(name.partition(".")[2] or 0))
    *outputs, targets = (torch.from_numpy(np.ascontiguousarray(records[name])) for name in (*names, "targets"))
    return float(function(outputs[0] if len(outputs) == 1 else tuple(outputs), targets))


def _negative_perplexity(scores: Scores) -> float:
    return -math.exp(_ratio(scores))


_SETTINGS: Mapping[str, tuple[str, Callable[[str], float], Callable[..., Any]]] = {
    "hit_rate": ("k", int, metrics.hit_rate),
    "ndcg": ("k", int, metrics.ndcg),
    "sensitivity": ("specificity", float, metrics.sensitivity),
}
_SETS = (
    metrics.balanced_accuracy, metrics.f1, metrics.roc_auc, metrics.average_precision, metrics.sensitivity,
    metrics.negative_calibration_error, metrics.r2,
)  # fmt: skip
_SAMPLES = (
    metrics.accuracy, metrics.negative_squared_error, metrics.negative_absolute_error, metrics.exact_match, metrics.span_f1,
    metrics.hit_rate, metrics.ndcg, metrics.cosine_similarity, metrics.negative_relative_error,
)  # fmt: skip
_KNOWN: Mapping[str, Metric] = {
    **{function.__name__: Metric(function.__name__, function) for function in _SAMPLES},
    **{function.__name__: Metric.over_set(function) for function in _SETS},
    "negative_perplexity": Metric("negative_perplexity", metrics.negative_log_likelihood, _negative_perplexity),
    "character_accuracy": Metric("character_accuracy", metrics.transcribed),
    "fidelity": Metric("fidelity", metrics.fidelity),
}


def _set(metric: str, name: str, setting: str) -> Metric:
    """A metric with the number behind its "@".

    Raises:
        UserError: E110 when it takes none, or another kind of number.
    """
    if name not in _SETTINGS:
        raise UserError("E110", f'metric "{metric}": {name} takes no setting', f'write "{name}"')
    keyword, kind, function = _SETTINGS[name]
    try:
        number = kind(setting)
    except ValueError:
        number = -1
    if number <= 0 or (kind is float and number >= 1):
        due = "a whole number above 0" if kind is int else "a number between 0 and 1"
        raise UserError("E110", f'metric "{metric}": {keyword} must be {due}', f'write "{name}@{10 if kind is int else 0.9}"')
    given = partial(function, **{keyword: number})
    return Metric(metric, given) if name in {one.__name__ for one in _SAMPLES} else Metric.over_set(given, metric)
