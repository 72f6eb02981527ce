"""One batch through model, loss and metric before anything begins: a mistake must not surface after an hour."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mirabelle.batch import Batch, Samples, call, tensors_of
from mirabelle.errors import UserError
from mirabelle.task import Task

_CLASS_SCORES = 2  # dimensions: batch, classes


def try_one_batch(model: nn.Module, task: Task) -> Tensor:
    """The model's outputs for the task's example; everything that a run takes for granted holds afterwards.

    Raises:
        UserError: E121 when the model fails on the data, gives no tensor, or gives values that are not finite; E131 when loss
            or metric fail on its outputs; E132 when a label is no class of the model.
    """
    batch = task.example()
    outputs = _outputs(model, batch)
    _judge(task, outputs, batch)
    if task.classifies and outputs.dim() == _CLASS_SCORES:
        splits = {"train": task.train, "validation": task.validation, "test": task.test}
        for name, data in splits.items():
            if isinstance(data, Samples):
                _hold_labels(name, data.targets, outputs.shape[1])
    return outputs


def _outputs(model: nn.Module, batch: Batch) -> Tensor:
    given = ", ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in tensors_of(batch.inputs))
    try:
        with torch.no_grad():
            outputs = call(copy.deepcopy(model).eval(), batch.inputs)
    except Exception as error:
        message = f"the model fails on inputs of {given}: {error}"
        raise UserError("E121", message.splitlines()[0], "see that shapes and types fit the model") from error
    if not isinstance(outputs, Tensor):
        raise UserError(
            "E121", f"the model gives {type(outputs).__name__}, not a tensor", "wrap it so that it returns its scores"
        )
    if not torch.isfinite(outputs).all():
        where = next((name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()), None)
        because = f'; its tensor "{where}" is not finite either' if where else ""
        raise UserError("E121", f"the model gives NaN or infinite values{because}", "start from weights that work")
    return outputs


def _judge(task: Task, outputs: Tensor, batch: Batch) -> None:
    try:
        task.loss(outputs.float(), batch.targets)
        task.metric.of_samples(outputs, batch.targets)
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, IndexError) and task.classifies and outputs.dim() == _CLASS_SCORES:
            _hold_labels("train", batch.targets, outputs.shape[1])
        targets = f"{batch.targets.dtype} {tuple(batch.targets.shape)}"
        message = f"loss or metric fail on outputs of {tuple(outputs.shape)} and targets of {targets}: {error}"
        raise UserError("E131", message.splitlines()[0], "give class indices as int64, other targets as float32") from error


def _hold_labels(split: str, targets: Tensor, classes: int) -> None:
    if targets.is_floating_point() or targets.dim() != 1:
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= classes:
        raise UserError(
            "E132",
            f"labels must be in [0, {classes - 1}], one for each output of the model; {split} has {low} to {high}",
            "number the classes from 0, or give the model as many outputs as there are classes",
        )
