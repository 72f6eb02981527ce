"""A model's outputs and its metrics over data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mirabelle.model.state import in_eval_mode
from mirabelle.numerics.statistics import Scores
from mirabelle.task.batch import Batch, Inputs, Outputs, Samples, Stream, call, joined
from mirabelle.task.metric import Metric
from mirabelle.task.task import Task

_BATCH = 500


def evaluate(model: nn.Module, data: Samples | Stream, task: Task) -> Scores:
    """What the metric sees of every sample, in float32 and eval mode; afterwards each module is in the mode that it had."""
    with torch.inference_mode(), in_eval_mode(model):
        return evaluate_metrics(partial(call, model), data, task, (task.metric,))[0]


def evaluate_metrics(
    run: Callable[[Inputs], Outputs], data: Samples | Stream | Sequence[Batch], task: Task, metrics: Sequence[Metric]
) -> list[Scores]:
    """What each metric sees of every sample, in the data's order.

    Args:
        run: gives a model's outputs for inputs; of metrics of sequences it is called until these are written.
        data: that are judged.
        task: of the metrics.
        metrics: in the order of what comes back.
    """
    batches = list(data.batches(_BATCH)) if isinstance(data, (Samples, Stream)) else data
    targets = torch.cat([batch.targets for batch in batches])
    given: dict[bool, Outputs] = {}
    for written in {metric.of_sequences for metric in metrics}:
        assert task.generation is not None or not written, "a task refuses such a metric"
        outputs = partial(task.generation, run) if written and task.generation is not None else run
        given[written] = joined([outputs(batch.inputs) for batch in batches])
    return [metric.of_samples(given[metric.of_sequences], targets) for metric in metrics]


def outputs_of(model: nn.Module, data: Samples | Stream) -> tuple[Outputs, Tensor]:
    """(outputs, targets) of all samples, in the data's order; several outputs as a tuple.

    The model runs in eval mode; afterwards each module is in the mode that it had.
    """
    with torch.inference_mode(), in_eval_mode(model):
        pairs = [(call(model, batch.inputs), batch.targets) for batch in data.batches(_BATCH)]
    return joined([outputs for outputs, _ in pairs]), torch.cat([targets for _, targets in pairs])
