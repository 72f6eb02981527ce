"""Whether a loss of the user is the sum of the shares of its parts, as it is assumed of batches that are taken in parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mirabelle.errors import is_out_of_memory
from mirabelle.model.device import device_of_job
from mirabelle.model.state import in_eval_mode
from mirabelle.run.run import Run
from mirabelle.task.batch import Outputs, as_outputs, call, in_float32, parts_of
from mirabelle.task.loss import Loss, counted_targets, is_of_user

if TYPE_CHECKING:
    from mirabelle.task.task import Task

_SAMPLES = 8
_ADDS_UP = 1e-3  # of the loss of a batch, within which it is the sum of its parts


def warn_unless_it_adds_up(model: nn.Module, task: Task, run: Run) -> None:
    """Tell the run if batches are taken in parts and the loss of the task is a function that is no mean over their samples.

    Args:
        model: gives outputs of a few samples.
        task: with its loss.
        run: is told.
    """
    if not is_of_user(task.loss):
        return
    batch = task.example(_SAMPLES).to(device_of_job(model))
    try:
        with torch.no_grad(), in_eval_mode(model):
            fits = adds_up(task.loss, in_float32(call(model, batch.inputs)), batch.targets)
    except Exception as error:  # a model that is not on its device yet, or a loss that needs a whole batch
        if is_out_of_memory(error):
            raise
        return
    if not fits:
        text = "the loss is no mean over the samples or their known targets, and batches are taken in parts"
        run.event("warning", text=f"{text}: it becomes another one. Use a single process without micro_batch, or a mean")


def adds_up(loss: Loss, outputs: Outputs, targets: Tensor) -> bool:
    """Whether the loss of a batch is the sum of the shares of its halves, as it is assumed of a function of the user.

    Example:
        >>> outputs, targets = torch.arange(4.0)[:, None], torch.zeros(4, 1)
        >>> adds_up(lambda o, t: (o - t).abs().mean(), outputs, targets), adds_up(lambda o, t: (o - t).sum(), outputs, targets)
        (True, False)
    """
    count, total = len(targets), 0.0
    for half in (slice(0, count // 2), slice(count // 2, count)):
        part = as_outputs([one[half] for one in parts_of(outputs)])
        share = counted_targets(loss, targets[half]) / max(counted_targets(loss, targets), 1.0)
        total += share * float(loss(part, targets[half]))
    whole = float(loss(outputs, targets))
    return abs(total - whole) <= _ADDS_UP * max(abs(whole), _ADDS_UP)
