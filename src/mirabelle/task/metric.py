"""Metrics: scores of single samples, higher is better, from which values, confidence intervals and paired tests follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mirabelle.errors import UserError, did_you_mean
from mirabelle.numerics import decision_metrics, metrics
from mirabelle.numerics.arrays import to_numpy
from mirabelle.numerics.statistics import (
    Scores,
    Statistic,
    mean_interval,
    paired_difference,
    paired_p_value,
    records_of,
    resampled_difference,
    resampled_interval,
)
from mirabelle.records.functions import function_from
from mirabelle.task.outputs import Form, OutputKind
from mirabelle.task.profile import MeasuredMetric

PerSample = Callable[..., Tensor | Scores]  # (outputs, targets), several outputs are a tuple; or Decisions
OverSet = Callable[[Any, Tensor], float | Tensor]
_SUM_AND_COUNT = 2  # columns


def _ratio(scores: Scores) -> float:
    total, count = scores.sum(0)
    return float(total / count) if count else math.nan


@dataclass(frozen=True)
class Metric:
    """A metric: scores of single samples, and a statistic that reduces them to one number.

    Args:
        name: name of the metric in reports and messages.
        scores: (outputs, targets) -> scores, higher is better. Scores (samples,) are averaged; for scores (samples, 2), each a
            (sum, count), the metric is Σ sum / Σ count.
        statistic: scores of all samples -> number, instead of the mean or the ratio.
        of_sequences: whether `scores` takes the sequences that the model generates (`Task.generation`), padded with −100,
            instead of its outputs.
        forms: the forms of outputs that the metric is defined for; empty for any.
        of_decisions: whether `scores` takes `Decisions`, to which outputs and targets are brought by the task's `OutputKind`.
        undefined_for: targets of a set -> why the metric is not defined for them; "" if it is.

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
    forms: frozenset[Form] = frozenset()
    of_decisions: bool = False
    undefined_for: Callable[[Tensor], str] | None = None

    @staticmethod
    def of(metric: str | PerSample | Metric, folder: Path = Path()) -> Metric:
        """The metric of a name, or of a function that returns the scores of samples.

        Names for classification are "accuracy", "balanced_accuracy", "f1", "mean_iou", "roc_auc", "average_precision",
        "sensitivity" ("sensitivity@0.9": at this specificity) and "negative_calibration_error", for classes or labels of
        samples, tokens or pixels; for
        regression "negative_squared_error", "negative_absolute_error" and "r2"; for spans "exact_match" and "span_f1"; for
        language models and transcription "negative_perplexity" and "character_accuracy"; for ranking "hit_rate" and "ndcg"
        ("hit_rate@10"); for comparison with the outputs of another model "fidelity", "cosine_similarity" and
        "negative_relative_error", for one or several outputs.

        Args:
            metric: one of these names; "pkg.mod:function" or "./file.py:function", which names a function that returns scores,
                or a `Metric`; such a function or `Metric` itself. For a model with several outputs, the function takes a tuple.
            folder: the folder to which the path of a file is relative.

        Raises:
            UserError: E110 if the name is not known, E120 if there is no such function.
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
        """A metric of a whole set, such as a function of torchmetrics or scikit-learn.

        Confidence intervals and tests use the bootstrap, which calls the function some thousand times.

        Args:
            function: (outputs, targets) of all samples -> one number, higher is better.
            name: name of the metric; by default that of the function.

        Example:
            >>> largest = Metric.over_set(lambda outputs, targets: outputs.max(), "largest")
            >>> largest.value(largest.of_samples(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1])))
            3.0
        """
        name = name or str(getattr(function, "__name__", type(function).__name__))
        return Metric(name, _pairs, partial(_of_pairs, function))

    @staticmethod
    def bleu(decode: Callable[[list[int]], str]) -> Metric:
        """BLEU of generated sequences against one reference each, as a fraction in [0, 1], computed by sacrebleu.

        Args:
            decode: symbols -> text, without begin and end symbols.

        Raises:
            UserError: E160 if sacrebleu is not installed.

        Source: Papineni, Roukos, Ward, Zhu 2002, doi:10.3115/1073083.1073135; Post 2018, arXiv:1804.08771.
        """
        from mirabelle.task.bleu import corpus_bleu, library, sentence_counts

        library()
        return Metric("bleu", partial(sentence_counts, decode), corpus_bleu, of_sequences=True)

    @property
    def highest(self) -> float:
        """The highest value of a named metric; infinity for others."""
        named = self.name in _KNOWN and self == _KNOWN[self.name]
        return math.inf if not named else 0.0 if self.name.startswith("negative_") else 1.0

    def value(self, scores: Scores) -> float:
        """The value of the metric for the scores of a set of samples."""
        statistic = self._statistic(scores)
        return float(scores.mean()) if statistic is None else statistic(scores)

    def measured(self, scores: Scores, not_finite: int = 0) -> MeasuredMetric:
        """The value of the metric for the scores of a set of samples, with its 95 % confidence interval.

        Args:
            scores: of all samples.
            not_finite: number of samples whose outputs are not finite.

        Raises:
            UserError: E121 if the value is not finite.
        """
        value = self.value(scores)
        if not math.isfinite(value):
            because = f": the outputs of {not_finite} samples are NaN or infinite" if not_finite else ""
            remedy = "correct the model, or start from weights that work" if not_finite else self.remedy
            raise UserError("E121", f"metric {self.name} is {value} on {len(scores)} samples{because}", remedy)
        value, low, high = self.interval(scores)
        return MeasuredMetric(self.name, value, low, high, len(scores), not_finite)

    @property
    def remedy(self) -> str:
        """What to do where the metric is not defined for the data."""
        if self.forms == _NUMBERS:
            return 'give targets that vary and are not empty, or use "negative_squared_error"'
        return (
            "give samples of every class, or name another metric" if self.of_decisions else "check the metric and the targets"
        )

    def interval(self, scores: Scores) -> tuple[float, float, float]:
        """(value, low, high): the value of the metric and its 95 % confidence interval."""
        statistic = self._statistic(scores)
        return mean_interval(scores) if statistic is None else resampled_interval(scores, statistic)

    def difference(self, before: Scores, after: Scores) -> tuple[float, float, float]:
        """(difference, low, high): the change of the metric on the same samples, after − before, with its 95 % interval."""
        statistic = self._statistic(before)
        return paired_difference(before, after) if statistic is None else resampled_difference([before], [after], statistic)[:3]

    def p_value(self, before: Sequence[Scores], after: Sequence[Scores]) -> float:
        """p-value of a paired test: the probability of a difference at least this large between two equally good models.

        Args:
            before: scores of the first model, one entry for each seed.
            after: scores of the second model on the same samples.
        """
        statistic = self._statistic(before[0])
        if statistic is None:
            return paired_p_value(np.mean(before, axis=0), np.mean(after, axis=0))
        return resampled_difference(before, after, statistic)[3]

    def check(self, kind: OutputKind) -> None:
        """Raise an error if the metric is not defined for outputs of a kind.

        Raises:
            UserError: E111.
        """
        if self.forms and kind.form is not Form.UNKNOWN and kind.form not in self.forms:
            due = " or ".join(sorted(form.value for form in self.forms - {Form.UNKNOWN}))
            message = f"metric {self.name} takes {due}; by loss and targets the outputs are {kind.form.value}"
            raise UserError("E111", message, "name another metric, or the loss of these outputs")

    def of_samples(self, outputs: Tensor | tuple[Tensor, ...], targets: Tensor, kind: OutputKind | None = None) -> Scores:
        """The score of each sample as float64, or, for a metric of a whole set, a record of what it needs of each sample.

        Args:
            outputs: outputs of the model for all samples.
            targets: targets of all samples.
            kind: the meaning of the outputs, `Task.outputs`; by default logits, with the classes in the last axis.

        Raises:
            UserError: E111 or E131 if the metric is not defined for these outputs and targets, E132 for targets that are no
                class; E131 if the function does not return one entry for each sample.
        """
        with torch.no_grad():
            if kind is not None:
                self.check(kind)
            if self.of_decisions:
                kind = kind or OutputKind.of_pair(outputs, targets)
                scores = self.scores(kind.decisions(outputs, targets))
            else:
                scores = self.scores(outputs, targets)
        if isinstance(scores, np.ndarray):
            return scores
        due = targets.shape[:1] if self.statistic is None else scores.shape[:1]
        if scores.shape not in (due, (*due, _SUM_AND_COUNT)) or len(scores) != len(targets):
            raise UserError(
                "E131",
                f"metric {self.name} returned shape {tuple(scores.shape)} for {len(targets)} samples",
                "return one score for each sample, shape (batch,), or define a metric of the set: Metric.over_set(function)",
            )
        found: Scores = to_numpy(scores.double())
        if not self.forms and not self.of_sequences:  # a function of the user: what NaN is worth is not known
            found[to_numpy(not_finite(outputs))] = math.nan
        return found

    def _statistic(self, scores: Scores) -> Statistic | None:
        """The statistic of the metric for these scores; None for the mean."""
        return self.statistic or (_ratio if scores.ndim == _SUM_AND_COUNT else None)


def _pairs(outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Scores:
    """One record of output and target for each sample; several outputs are the fields "outputs.0", "outputs.1", …"""
    several = {f"outputs.{k}": part for k, part in enumerate(outputs)} if isinstance(outputs, tuple) else {"outputs": outputs}
    arrays = {name: to_numpy(part.float()) for name, part in several.items()}
    return records_of({**arrays, "targets": to_numpy(targets)})


def not_finite(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Which samples have outputs that are NaN or infinite, (samples,)."""
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    return ~torch.stack([part.reshape(len(part), -1).isfinite().all(1) for part in parts]).all(0)


def _of_pairs(function: OverSet, records: Scores) -> float:
    """The value of a function for records of `_pairs`; NaN if an output is not finite, since its worth is not known."""
    names = sorted(set(records.dtype.names or ()) - {"targets"}, key=lambda name: int(name.partition(".")[2] or 0))
    *outputs, targets = (torch.from_numpy(np.ascontiguousarray(records[name])) for name in (*names, "targets"))
    if any(not bool(part.isfinite().all()) for part in outputs):
        return math.nan
    return float(function(outputs[0] if len(outputs) == 1 else tuple(outputs), targets))


def _negative_perplexity(scores: Scores) -> float:
    return -math.exp(_ratio(scores))


_DECIDED = frozenset({Form.CLASSES, Form.LABELS})
_CLASSES = frozenset({Form.CLASSES})
_NUMBERS = frozenset({Form.NUMBERS, Form.MATCHED})
_SPANS = frozenset({Form.SPAN})


def _decided(name: str, scores: PerSample, statistic: Statistic | None = None, forms: frozenset[Form] = _DECIDED) -> Metric:
    return Metric(name, scores, statistic, forms=forms, of_decisions=True)


_DECISIONS = decision_metrics
_KNOWN: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        _decided("accuracy", _DECISIONS.accuracy),
        _decided("balanced_accuracy", _DECISIONS.confusion, _DECISIONS.balanced_accuracy),
        _decided("mean_iou", _DECISIONS.confusion, _DECISIONS.mean_iou),
        _decided("f1", _DECISIONS.confusion, _DECISIONS.f1),
        _decided("roc_auc", _DECISIONS.ranks, _DECISIONS.roc_auc),
        _decided("average_precision", _DECISIONS.ranks, _DECISIONS.average_precision),
        _decided("sensitivity", _DECISIONS.ranks, _DECISIONS.sensitivity),
        _decided("negative_calibration_error", _DECISIONS.calibration, _DECISIONS.negative_calibration_error),
        _decided("negative_perplexity", _DECISIONS.negative_log_likelihood, _negative_perplexity, _CLASSES),
        _decided("hit_rate", _DECISIONS.hit_rate, forms=_CLASSES),
        _decided("ndcg", _DECISIONS.ndcg, forms=_CLASSES),
        Metric("negative_squared_error", metrics.negative_squared_error, forms=_NUMBERS),
        Metric("negative_absolute_error", metrics.negative_absolute_error, forms=_NUMBERS),
        Metric("r2", metrics.squared_errors, metrics.r2, forms=_NUMBERS, undefined_for=metrics.constant_numbers),
        Metric("exact_match", metrics.exact_match, forms=_SPANS),
        Metric("span_f1", metrics.span_f1, forms=_SPANS),
        Metric("character_accuracy", metrics.transcribed, forms=frozenset({Form.SYMBOLS})),
        Metric("fidelity", metrics.fidelity, forms=_NUMBERS),
        Metric("cosine_similarity", metrics.cosine_similarity, forms=_NUMBERS),
        Metric("negative_relative_error", metrics.negative_relative_error, forms=_NUMBERS),
    )
}
_SETTINGS: Mapping[str, tuple[str, Callable[[str], float]]] = {
    "hit_rate": ("k", int), "ndcg": ("k", int), "sensitivity": ("specificity", float)
}  # fmt: skip


def _set(metric: str, name: str, setting: str) -> Metric:
    """A metric with the number after its "@".

    Args:
        metric: "hit_rate@10".
        name: the part before the "@".
        setting: the part after it.

    Raises:
        UserError: E110 if the metric takes no setting, or another kind of number.
    """
    if name not in _SETTINGS:
        raise UserError("E110", f'metric "{metric}": {name} takes no setting', f'write "{name}"')
    keyword, kind = _SETTINGS[name]
    try:
        number = kind(setting)
    except ValueError:
        number = -1
    if number <= 0 or (kind is float and number >= 1):
        due = "an integer above 0" if kind is int else "a number between 0 and 1"
        raise UserError("E110", f'metric "{metric}": {keyword} must be {due}', f'write "{name}@{10 if kind is int else 0.9}"')
    own = _KNOWN[name]
    if own.statistic is not None:
        return replace(own, name=metric, statistic=partial(own.statistic, **{keyword: number}))
    return replace(own, name=metric, scores=partial(own.scores, **{keyword: number}))
