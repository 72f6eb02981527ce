"""What a training leaves of a quantized model: the better one of before and after."""

from __future__ import annotations

from torch import nn

from mirabelle.run.run import Run
from mirabelle.task.task import Task


def better_one(before: nn.Module, trained: nn.Module, task: Task, run: Run, *, before_is: str) -> nn.Module:
    """The quantized model as trained, or as it was before the training if that is better on the validation data.

    Args:
        before: the model before the training.
        trained: after it.
        task: has the metric and the validation data.
        run: a warning tells that the model before is kept.
        before_is: the state of the model before, in words, such as "as calibrated".
    """
    from mirabelle.training import evaluate

    after, earlier = (task.metric.value(evaluate(model, task.validation, task)) for model in (trained, before))
    if not after < earlier:
        return trained
    message = (
        f"the training made the quantized model worse: {task.metric.name} {after:.4g} on the validation data, {earlier:.4g}"
    )
    run.event("warning", text=f"{message} {before_is}, which is kept; try a lower lr")
    return before
