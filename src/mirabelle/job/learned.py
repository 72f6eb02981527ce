"""Whether a model has learned anything: is it better than the best answer that is the same for every input?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mirabelle.numerics.statistics import Scores, student_interval
from mirabelle.numerics.target_shapes import unlabelled
from mirabelle.report import ConstantAnswer
from mirabelle.report.table import interval
from mirabelle.report.verdict import plain
from mirabelle.run.run import Run
from mirabelle.task.batch import Batch, Outputs, as_outputs, in_float32, parts_of
from mirabelle.task.constant import Constant, best_constant, constants, own_mean
from mirabelle.task.profile import MeasuredMetric, Profile
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task
from mirabelle.training import evaluate, outputs_of

_COMPARED = 500  # samples of which outputs and losses are compared one by one
_EQUAL = 1e-6  # outputs that differ by less, relative to the largest, are the same: rounding of float32


@dataclass(frozen=True)
class Standing:
    """A model beside the best constant answer, on the same samples.

    Args:
        metric: of the model.
        constant: the constant answer with the highest metric; None if none is known for the outputs of the task.
        learned: whether the model is better than a constant answer.
    """

    metric: MeasuredMetric
    constant: Constant | None
    learned: bool

    def in_words(self, samples: str) -> str:
        """The metric of both, such as "accuracy 12.50% (9.9 – 15.6) on 800 validation samples; always class 3: 13.10%"."""
        own = f"{self.metric.name} {interval(self.metric)} on {self.metric.n:,} {samples} samples"
        return (
            own if self.constant is None else f"{own}; always {self.constant.answer}: {plain(self.metric, self.constant.value)}"
        )


def standing(model: nn.Module, task: Task, data: Samples, measured: MeasuredMetric | None = None) -> Standing:
    """Compare a model with the best constant answer (`task.constant`) on the same samples.

    The model has learned something if its outputs differ between samples, and

        the lower end of its metric's 95 % interval is above the metric of the constant answer, or
        its loss is lower than that of the constant answer that has the lowest loss: the 95 % interval of the mean difference
        over up to 500 samples is above 0.

    The loss is the second look because a metric may not show what a model knows: of 100 samples of which 95 are of one class,
    a useful model has 96 right.

    Args:
        model: any model of the task.
        task: its metric and its loss judge.
        data: samples with targets.
        measured: the metric of the model on these samples, if it is known already.
    """
    metric = measured or _measured(model, task, data)
    few = data if len(data) <= _COMPARED else Samples(*_parts(data.first(_COMPARED)))
    example = outputs_of(model, Samples(*_parts(data.first(2))))[0]
    constant = best_constant(task, data, example)
    if constant is not None and len(data) > 1 and metric.low > constant.value:
        return Standing(metric, constant, learned=True)
    outputs = outputs_of(model, few)[0]
    if constant is None:
        constant = own_mean(task, data, outputs if few is data else outputs_of(model, data)[0])
    if _are_equal(outputs):
        return Standing(metric, constant, learned=False)
    if constant is not None and len(data) > 1 and metric.low > constant.value:
        return Standing(metric, constant, learned=True)
    return Standing(metric, constant, learned=constant is None or _has_lower_loss(task, few, outputs))


def with_teacher_that_learned(
    task: Task, start: nn.Module, teacher: nn.Module | None, measured: MeasuredMetric | None, run: Run
) -> Task:
    """The task of a run with its teacher; a model to compress that has learned nothing does not teach by default.

    Warnings say what has learned nothing, and whether a teacher is weaker than the model that it teaches. The decision
    "start_teaches" is recorded, so that a resumed run decides alike; a run of an earlier version goes on as it began.

    Args:
        task: its validation samples judge.
        start: the model to compress.
        teacher: the one that is given, or None for `start`.
        measured: the metric of the start on the validation samples, if it is known already.
        run: records the warnings and the decision.
    """
    found = standing(start, task, task.validation, measured)
    if not found.learned:
        run.event("warning", text=f"{nothing_learned('the model to compress', found)}. {REMEDY}")
    if teacher is not None:
        own = standing(teacher, task, task.validation)
        if not own.learned:
            run.event("warning", text=nothing_learned("the teacher", own))
        elif own.metric.value < found.metric.value:
            values = f"{own.metric.value:.4f}, the model that it teaches {found.metric.value:.4f}"
            run.event("warning", text=f"the teacher has {own.metric.name} {values}")
        return task.with_teacher(teacher)
    return taught_by_start(task.with_teacher(start), found, run)


def taught_by_start(task: Task, found: Standing, run: Run) -> Task:
    """The task of a run whose teacher is the model to compress: that does not teach by default if it has learned nothing."""
    assert task.teacher is not None, "the model to compress is the teacher"
    begun = any(path.name.partition("-")[0] != "0" for path in (run.folder / "steps").glob("*"))
    teaches = run.decide("start_teaches", lambda: begun or found.learned)
    return task if teaches else task.without_lessons_of(task.teacher)


REMEDY = "Train it first (`baseline`), or start from trained weights; as it is, it does not teach by default"


def nothing_learned(who: str, found: Standing, samples: str = "validation") -> str:
    """A sentence on a model that is not better than a constant answer."""
    return f"{who} is not better than the same answer for every input: {found.in_words(samples)}"


def constant_beside(task: Task, start: tuple[nn.Module, Profile], end: tuple[nn.Module, Profile]) -> ConstantAnswer | None:
    """The best constant answer on the test samples beside the models before and after compression.

    Args:
        task: its test samples judge.
        start: the model before compression, and its profile on the test samples.
        end: the compressed model, and its profile.
    """
    first, last = (standing(model, task, task.test, profile.metric) for model, profile in (start, end))
    known = first.constant or last.constant
    return None if known is None else ConstantAnswer(known.answer, known.value, first.learned, last.learned)


def _measured(model: nn.Module, task: Task, data: Samples) -> MeasuredMetric:
    scores = evaluate(model, data, task)
    return MeasuredMetric(task.metric.name, *task.metric.interval(scores), len(scores))


def _parts(batch: Batch) -> tuple[object, torch.Tensor]:
    return batch.inputs, batch.targets


def _are_equal(outputs: Outputs) -> bool:
    """Whether a model gives the same outputs for all samples, at least two."""
    parts = [part.float() for part in parts_of(outputs)]
    spans = [(part - part[:1]).abs().max() <= _EQUAL * part.abs().max() for part in parts]
    return len(parts[0]) > 1 and all(map(bool, spans))


def _has_lower_loss(task: Task, data: Samples, outputs: Outputs) -> bool:
    """Whether the mean loss of outputs is lower than that of a constant answer, by more than its 95 % interval."""
    targets = task.train.targets if isinstance(task.train, Samples) else data.targets
    known = next(constants(task, targets, outputs), None)
    if known is None:
        return False
    every = as_outputs(tuple(part.expand(len(data), *part.shape[1:]) for part in parts_of(known[1])))
    own, other = (_losses(task, data, given) for given in (outputs, every))
    counted = np.isfinite(other)
    if task.outputs.classifies:
        counted &= ~unlabelled(data.targets).numpy()
    if int(counted.sum()) < 2 or not np.isfinite(own[counted]).all():  # noqa: PLR2004 (one sample has no interval)
        return False
    return student_interval(other[counted] - own[counted])[1] > 0


def _losses(task: Task, data: Samples, outputs: Outputs) -> Scores:
    """The task's loss of each sample alone; NaN where it is not defined."""
    parts, losses = parts_of(in_float32(outputs)), []
    for k in range(len(data)):
        try:
            losses.append(float(task.loss(as_outputs(tuple(part[k : k + 1] for part in parts)), data.targets[k : k + 1])))
        except (ValueError, RuntimeError, ArithmeticError):
            losses.append(math.nan)
    return np.array(losses)
