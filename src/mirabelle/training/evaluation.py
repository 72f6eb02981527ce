"""A model's outputs and its metric over data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mirabelle.batch import Outputs, Samples, Stream, call, joined
from mirabelle.numerics.statistics import Scores
from mirabelle.task import Task

_BATCH = 500


def evaluate(model: nn.Module, data: Samples | Stream, task: Task) -> Scores:
    """What the metric sees of every sample, in float32 and eval mode; the model's mode is put back."""
    outputs, targets = outputs_of(model, data)
    return task.metric.of_samples(outputs, targets)


def outputs_of(model: nn.Module, data: Samples | Stream) -> tuple[Outputs, Tensor]:
    """(outputs, targets) of all samples, in the data's order; several outputs as a tuple."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        pairs = [(call(model, batch.inputs), batch.targets) for batch in data.batches(_BATCH)]
    model.train(was_training)
    return joined([outputs for outputs, _ in pairs]), torch.cat([targets for _, targets in pairs])
