"""Answers that are the same for every input: what a model must do better than to have learned anything from its inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mirabelle.errors import UserError
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.numerics.target_shapes import CLASS_SCORES
from mirabelle.task.batch import Outputs, as_outputs, parts_of
from mirabelle.task.outputs import Form
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task

_MOST_SAMPLES = 10_000  # targets from which frequencies and means are estimated
_MOST_FREQUENCIES = 1_000_000  # frequencies by position: positions · classes
_EVEN = 0.5
_FEW = 20  # fewer samples do not estimate a frequency or a mean


@dataclass(frozen=True)
class Constant:
    """The constant answer with the highest metric on a set of samples.

    Args:
        answer: in words, such as "class 3".
        value: its metric.
        outputs: for one sample, (1, ...); a tuple for several outputs.
    """

    answer: str
    value: float
    outputs: Outputs


def constants(task: Task, targets: Tensor, given: Outputs) -> Iterator[tuple[str, Outputs]]:
    """Constant answers for a task, in words and as outputs for one sample; the first has the lowest loss.

    Classes: the logarithm of the frequency of each class, and of each class at each position; always one of two classes.
    Labels: the logit of the frequency of each label; always positive. Numbers: mean and median. Spans: the frequency of each
    position.
    Symbols: the blank; the most frequent symbol. Outputs of an unknown form count as classes or numbers where shapes fit.

    Args:
        task: says what outputs and targets mean.
        targets: from which frequencies and means are estimated, (samples, ...).
        given: outputs of a model for any samples, for their shapes.
    """
    kind, parts = task.outputs, [part[:1].float() for part in parts_of(given)]
    targets = targets[:: max(1, len(targets) // _MOST_SAMPLES)]
    if kind.form is Form.MATCHED:
        yield from _matched(targets, parts)
        return
    if len(parts) > 1:
        return
    shape = parts[0].shape
    if kind.form in _SHAPED:
        yield from _SHAPED[kind.form](targets, shape)
    elif kind.form is Form.NUMBERS:
        for words, flat in _averages(targets.reshape(len(targets), *shape[1:]).float()):
            yield words, flat[None]
    elif kind.form is Form.LABELS:
        yield from _of_labels(task, targets.reshape(len(targets), *shape[1:]))
    elif kind.form in (Form.CLASSES, Form.UNKNOWN) and not targets.is_floating_point() and len(shape) > 1:
        yield from _of_scores(task, targets, shape)
    elif kind.form is Form.UNKNOWN and targets[0].numel() == shape[1:].numel():
        for words, flat in _averages(targets.reshape(len(targets), *shape[1:]).float()):
            yield words, flat[None]


def best_constant(task: Task, data: Samples, given: Outputs) -> Constant | None:
    """The constant answer with the highest metric on these samples; None if there is none that the metric takes.

    Frequencies and means are those of the training data, where they are in memory, and, without positions, those of `data`.

    Args:
        task: its metric judges.
        data: samples with targets.
        given: outputs of a model for some samples, for their shapes.

    Example:
        >>> x, y = torch.randn(100, 3), (torch.arange(100) % 4 == 0).long()
        >>> found = best_constant(Task(train=(x, y), test=(x, y)), Samples(x, y), torch.zeros(2, 2))
        >>> found.answer, found.value
        ('class 0', 0.75)
    """
    if task.metric.of_sequences:
        rows, counts = torch.unique(data.targets, dim=0, return_counts=True)
        return _best(task, data, [("the most frequent sequence", rows[counts.argmax()][None])])
    sources = [task.train.targets] if isinstance(task.train, Samples) else []
    if len(data) >= _FEW or not sources:
        sources.append(data.targets)
    return _best(task, data, [found for targets in sources for found in constants(task, targets, given)])


def own_mean(task: Task, data: Samples, given: Outputs) -> Constant | None:
    """The mean of a model's outputs for `data` as a constant answer, for outputs whose meaning is not known."""
    means = [part.float().mean(0, keepdim=True) for part in parts_of(given)]
    return _best(task, data, [("the mean of the model's outputs", as_outputs(tuple(means)))])


def _best(task: Task, data: Samples, candidates: Sequence[tuple[str, Outputs]]) -> Constant | None:
    found: Constant | None = None
    for words, outputs in candidates:
        every = tuple(part.expand(len(data), *part.shape[1:]) for part in parts_of(outputs))
        try:
            value = task.metric.value(task.metric.of_samples(as_outputs(every), data.targets, task.outputs))
        except (UserError, ValueError, RuntimeError, TypeError, IndexError, ArithmeticError):
            continue  # a metric of the user's, or one that is not defined for such an answer
        if math.isfinite(value) and (found is None or value > found.value):
            found = Constant(words, value, outputs)
    return found


def _averages(targets: Tensor) -> list[tuple[str, Tensor]]:
    return [("the mean of the targets", targets.mean(0)), ("the median of the targets", targets.median(0).values)]


def _matched(targets: Tensor, parts: Sequence[Tensor]) -> Iterator[tuple[str, Outputs]]:
    for words, flat in _averages(targets.flatten(1).float()):
        split = torch.split(flat, [part.numel() for part in parts])
        yield words, as_outputs(tuple(one.reshape(part.shape) for one, part in zip(split, parts, strict=True)))


def _of_scores(task: Task, targets: Tensor, shape: torch.Size) -> Iterator[tuple[str, Tensor]]:
    """Those of class scores, as probabilities where the model gives probabilities."""
    kind = task.outputs
    targets = targets.reshape(len(targets)) if len(shape) == CLASS_SCORES and targets[0].numel() == 1 else targets
    for words, scores in _of_classes(targets, shape, -1 if kind.classes_axis == -1 else 1, task.labels):
        are_probabilities = kind.form is Form.CLASSES and kind.activation is None
        yield words, scores.softmax(kind.classes_axis or 1) if are_probabilities else scores


def _of_labels(task: Task, targets: Tensor) -> Iterator[tuple[str, Tensor]]:
    shares = ((targets == 1).sum(0) + 1) / ((targets != UNLABELLED).sum(0) + 2)
    more = _name(int(shares > _EVEN), task.labels) if shares.numel() == 1 else "the more frequent value of each label"
    yield more, (shares if task.outputs.activation is None else shares.logit())[None]
    yield "positive", torch.ones_like(shares)[None]


def _of_spans(targets: Tensor, shape: torch.Size) -> Iterator[tuple[str, Tensor]]:
    counts = torch.stack([torch.bincount(column[column >= 0], minlength=shape[1]) for column in targets[:, :2].T], -1)
    yield "the most frequent span", (counts[: shape[1]] + 1.0).log()[None]


def _of_symbols(targets: Tensor, shape: torch.Size) -> Iterator[tuple[str, Tensor]]:
    counts = torch.bincount(targets[targets > 0].flatten(), minlength=shape[2])
    for words, symbol in (("no symbol", 0), ("the most frequent symbol", int(counts.argmax()))):
        yield words, torch.eye(shape[2])[symbol].expand(shape)


_SHAPED = {Form.SPAN: _of_spans, Form.SYMBOLS: _of_symbols}


def _of_classes(targets: Tensor, shape: Sequence[int], axis: int, labels: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Constant answers of class scores, as outputs (1, classes), (1, classes, ...) or (1, ..., classes)."""
    classes = shape[axis]
    places = [size for position, size in enumerate(shape) if position not in (0, axis % len(shape))]
    if list(targets.shape[1:]) != places:
        return
    flat = targets.reshape(len(targets), -1)  # (samples, positions)
    known = (flat >= 0) & (flat < classes)
    counts = torch.bincount(flat[known], minlength=classes)
    at_each = " at every position" if places else ""

    def laid_out(scores: Tensor) -> Tensor:  # (positions, classes) or (classes,)
        whole = scores.expand(math.prod(places), classes).reshape(*places, classes)[None]
        return whole if axis == -1 or len(shape) == CLASS_SCORES else whole.movedim(-1, 1)

    yield _name(int(counts.argmax()), labels) + at_each, laid_out((counts + 1.0).log())
    if classes == 2:  # noqa: PLR2004 (a metric of the positive class may prefer the rarer one)
        for k in (0, 1):
            yield _name(k, labels) + at_each, laid_out(torch.eye(2)[k])
    if places and math.prod(places) * classes <= _MOST_FREQUENCIES and len(targets) >= _FEW:
        index = flat + classes * torch.arange(flat.shape[1])
        by_place = torch.bincount(index[known], minlength=flat.shape[1] * classes).reshape(-1, classes)
        yield "the most frequent class of each position", laid_out((by_place + 1.0).log())


def _name(k: int, labels: Sequence[str]) -> str:
    return f'class "{labels[k]}"' if k < len(labels) else f"class {k}"
