"""Evaluation: the outputs and metrics of a model over data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mirabelle.errors import is_out_of_memory
from mirabelle.model.device import at_work, home
from mirabelle.model.state import in_eval_mode
from mirabelle.numerics.statistics import Scores
from mirabelle.run.process_group import agreed, in_all_processes_if_possible, in_order, together
from mirabelle.task.batch import Batch, Inputs, Outputs, call, joined, map_tensors, tensors_of
from mirabelle.task.metric import Metric, not_finite
from mirabelle.task.samples import Samples, Stream
from mirabelle.task.task import Task

_BATCH = 500
T = TypeVar("T")


def evaluate(model: nn.Module, data: Samples | Stream, task: Task) -> Scores:
    """The scores of the task's metric for every sample, in float32 and evaluation mode; all modes are restored afterwards.

    Several processes of a job share the samples.
    """
    if isinstance(data, Samples) and len(data) > _BATCH:
        return in_all_processes_if_possible(_evaluated, model, data, task)
    return _evaluated(model, data, task)


def _evaluated(model: nn.Module, data: Samples | Stream, task: Task) -> Scores:
    with at_work(model), torch.inference_mode(), in_eval_mode(model):
        return evaluate_metrics(partial(_called, model), data, task, (task.metric,))[0]


@dataclass(frozen=True)
class Evaluation:
    """What metrics say of a model.

    Args:
        scores: the scores of every sample, in the order of the data, by metric.
        not_finite: number of samples whose outputs are NaN or infinite.
    """

    scores: list[Scores]
    not_finite: int


def evaluate_metrics(
    run: Callable[[Inputs], Outputs], data: Samples | Stream | Sequence[Batch], task: Task, metrics: Sequence[Metric]
) -> list[Scores]:
    """The scores of several metrics for every sample, in the order of the data.

    Args:
        run: inputs -> outputs of the model; for metrics of generated sequences it is called repeatedly.
        data: the data to evaluate on.
        task: the task, for the meaning of outputs and the generation of sequences.
        metrics: the metrics.

    Returns:
        The scores by metric, in the order of `metrics`.
    """
    return evaluation(run, data, task, metrics).scores


@torch.no_grad()
def evaluation(
    run: Callable[[Inputs], Outputs], data: Samples | Stream | Sequence[Batch], task: Task, metrics: Sequence[Metric]
) -> Evaluation:
    """The scores of several metrics, as of `evaluate_metrics`, and the number of samples whose outputs are not finite.

    Of several processes that compute this together, each runs the model on a part of the batches.
    """
    written = [metric for metric in metrics if metric.of_sequences]
    assert task.generation is not None or not written, "a task with such a metric has `generation`"

    def seen(batch: Batch) -> _Seen:
        outputs: Outputs = in_memory(run, batch.inputs) if len(written) < len(metrics) else None
        sequences = None
        if written and task.generation is not None:
            sequences = in_memory(partial(task.generation, run), batch.inputs)
        scores = [
            metric.of_samples(outputs, batch.targets, task.outputs) for metric in metrics if not metric.of_sequences
        ]  # fmt: skip
        return _Seen(batch.targets, scores, sequences, 0 if outputs is None else int(not_finite(outputs).sum()))

    found = list(results_by_batch(data, seen))

    def evaluated() -> Evaluation:
        of_outputs = iter([np.concatenate(parts) for parts in zip(*(one.scores for one in found), strict=True)])
        of_sequences: list[Scores] = []
        if written:
            sequences, due = joined([one.sequences for one in found]), torch.cat([one.targets for one in found])
            of_sequences = [metric.of_samples(sequences, due, task.outputs) for metric in written]
        rest = iter(of_sequences)
        scores = [next(rest if metric.of_sequences else of_outputs) for metric in metrics]
        return Evaluation(scores, sum(one.not_finite for one in found))

    return agreed(evaluated)


@dataclass(frozen=True)
class _Seen:
    """What is kept of a batch: scores, and generated sequences, which are as long as the longest of all samples.

    Args:
        targets: of the batch.
        scores: of each metric of outputs.
        sequences: None if no metric is of sequences.
        not_finite: number of samples whose outputs are NaN or infinite.
    """

    targets: Tensor
    scores: list[Scores]
    sequences: Outputs
    not_finite: int


def results_by_batch(data: Samples | Stream | Sequence[Batch], work: Callable[[Batch], T]) -> Iterator[T]:
    """The results of some work for each batch of the data, in their order; several processes share work on samples.

    In the processes behind the first nothing is yielded, but the iterator has to be exhausted, too.

    Args:
        data: the data, in batches of 500 samples.
        work: batch -> result.
    """
    group = together()
    if isinstance(data, Samples) and group is not None:
        yield from in_order(range(0, len(data), _BATCH), lambda start: work(data.between(start, start + _BATCH)))
    elif group is None or group.leads:
        yield from map(work, data.batches(_BATCH) if isinstance(data, (Samples, Stream)) else data)


def outputs_of(model: nn.Module, data: Samples | Stream) -> tuple[Outputs, Tensor]:
    """(outputs, targets) of all samples, in the order of the data; several outputs are a tuple.

    The model runs in evaluation mode; the mode of each of its modules is restored afterwards.
    """
    with at_work(model), torch.inference_mode(), in_eval_mode(model):
        pairs = [(in_memory(partial(_called, model), batch.inputs), batch.targets) for batch in data.batches(_BATCH)]
    return joined([outputs for outputs, _ in pairs]), torch.cat([targets for _, targets in pairs])


def _called(model: nn.Module, inputs: Inputs) -> Outputs:
    return home(call(model, inputs))


def in_memory(run: Callable[[Inputs], Outputs], inputs: Inputs) -> Outputs:
    """The outputs for a batch; if memory does not suffice for all samples at once, for one half after the other.

    Args:
        run: inputs -> outputs, each for itself.
        inputs: of the batch.
    """
    try:
        return run(inputs)
    except Exception as error:
        count = len(tensors_of(inputs)[0])
        if not is_out_of_memory(error) or count == 1:
            raise
    halves = (slice(0, count // 2), slice(count // 2, count))
    return joined([in_memory(run, map_tensors(inputs, lambda tensor: tensor[half])) for half in halves])  # noqa: B023
