"""What the metric becomes if the outputs of a model change by so much: measured with noise on the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from mirabelle.model.device import at_work, home
from mirabelle.model.state import in_eval_mode
from mirabelle.task.batch import Outputs, as_outputs, call, parts_of
from mirabelle.task.task import Task
from mirabelle.training.by_length import batches_by_length
from mirabelle.training.evaluation import evaluate_metrics

CHANGES = (0.0, 0.0003, 0.001, 0.003, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0)
_MOST, _BATCH = 2000, 250  # validation samples


@torch.no_grad()
def metrics_by_change(model: nn.Module, task: Task, seed: int) -> tuple[tuple[float, float], ...]:
    """(change, metric) for changes of the outputs from 0 to 1, on up to 2,000 validation samples.

    Gaussian noise is added to every floating-point output y, so that Σ noise² = change · Σ (y − ȳ)², with ȳ the mean over the
    samples. The error of a compressed model is no such noise; what is expected of it is a first estimate, which measurements of
    compressed models replace.

    Args:
        model: in eval mode.
        task: its validation samples and its metric.
        seed: of the noise.

    Example:
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> task = Task(train=(x, (x[:, 0] > 0).long()), test=(x, (x[:, 0] > 0).long()))
        >>> model = nn.Linear(2, 2)
        >>> _ = nn.init.constant_(model.bias, 0.0), model.weight.data.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        >>> found = metrics_by_change(model, task, 0)
        >>> found[0], found[-1][1] < 0.9
        ((0.0, 1.0), True)
    """
    data = task.validation.drawn(_MOST, seed)
    batches = batches_by_length(data, _BATCH, model) or list(data.batches(_BATCH))
    draw = torch.Generator().manual_seed(seed)
    with at_work(model), in_eval_mode(model):
        known = [home(call(model, batch.inputs)) for batch in batches]
        deviations = _deviations(known)
        found = []
        for change in CHANGES:
            noisy = partial(_with_noise, deviations=[change**0.5 * one for one in deviations], draw=draw)
            if task.metric.of_sequences:
                scores = evaluate_metrics(lambda inputs: noisy(home(call(model, inputs))), batches, task, (task.metric,))[0]  # noqa: B023
            else:
                outputs = iter([noisy(one) for one in known])
                scores = evaluate_metrics(lambda _: next(outputs), batches, task, (task.metric,))[0]  # noqa: B023
            found.append(task.metric.value(scores))
    values = np.minimum.accumulate(found)
    return tuple((change, float(value)) for change, value in zip(CHANGES, values, strict=True))


def _deviations(outputs: Sequence[Outputs]) -> list[float]:
    """The root of the mean of (y − ȳ)² of each floating-point output, over all samples and elements."""
    found = []
    for parts in zip(*[_floating(one) for one in outputs], strict=True):
        means = sum(part.double().sum(0) for part in parts) / sum(len(part) for part in parts)
        squares = sum(float((part.double() - means).square().sum()) for part in parts)
        found.append((squares / max(sum(part.numel() for part in parts), 1)) ** 0.5)
    return found


def _with_noise(outputs: Outputs, deviations: Sequence[float], draw: torch.Generator) -> Outputs:
    left = iter(deviations)
    parts = [
        part + next(left) * torch.randn(part.shape, generator=draw).to(part.dtype) if part.is_floating_point() else part
        for part in parts_of(outputs)
    ]
    return as_outputs(tuple(parts))


def _floating(outputs: Outputs) -> list[Tensor]:
    return [part for part in parts_of(outputs) if part.is_floating_point()]
