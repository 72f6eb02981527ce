"""Try loss and metrics before a run begins: on a few samples of all classes, and on the targets of all data that are judged."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.model.ending import ending
from mirabelle.model.state import copied
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.numerics.target_shapes import CLASS_SCORES, are_class_indices
from mirabelle.task.batch import Batch, Outputs, call, in_float32, joined, parts_of
from mirabelle.task.loss import TorchLoss
from mirabelle.task.metric import Metric, not_finite
from mirabelle.task.outputs import Form, OutputKind
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task
from mirabelle.training import evaluate_metrics

LOSS_OF_PROBABILITIES = 'the loss "torch.nn.functional:binary_cross_entropy"'  # of yes or no
_FEW = 8  # samples, of different classes as far as there are
_NUMBERS = 2**23  # largest number of outputs that are made up for the targets of a split
_ROUNDING = 1e-4  # of sums of probabilities in float32


def try_metrics(model: nn.Module, task: Task) -> None:
    """Compute every metric of a task on a few test samples, and on the targets of the validation and test data.

    For the targets, outputs of the few samples are repeated: what is wrong with the targets shows without running the model.

    Raises:
        UserError: E111 or E131 if a metric cannot be computed or is not defined for the data, E132 for wrong targets.
    """
    run, batch = partial(call, copied(model).eval()), _few(task.test)
    metrics = (task.metric, *task.extra_metrics)
    evaluate_metrics(run, [batch if task.generation is None else task.example()], task, metrics)
    plain = [metric for metric in metrics if not metric.of_sequences]
    if not plain:
        return
    with torch.no_grad():
        outputs = run(batch.inputs)
    wrong = int(not_finite(outputs).sum())
    broken = f"{wrong} of the {len(batch)} test samples tried" if wrong else ""
    for name, data in (("validation", task.validation), ("test", task.test)):
        size = max(1, sum(part.numel() for part in parts_of(outputs)) // len(batch))
        targets = data.targets[: max(_FEW, _NUMBERS // size)]
        places = torch.arange(len(targets)) % len(batch)
        made_up = joined([tuple(part[places] for part in outputs) if isinstance(outputs, tuple) else outputs[places]])
        for metric in plain:
            _try_metric(metric, made_up, targets, task.outputs, split=name, broken=broken)


def _try_metric(metric: Metric, outputs: Outputs, targets: Tensor, kind: OutputKind, *, split: str, broken: str) -> None:
    why = metric.undefined_for(targets) if metric.undefined_for is not None else ""
    value = metric.value(metric.of_samples(outputs, targets, kind)) if not why else math.nan
    if not math.isfinite(value) and broken and not why:
        message = f"metric {metric.name} is {value}: the outputs for {broken} are NaN or infinite"
        raise UserError("E121", message, "correct the model or the data, or start from weights that work")
    if not math.isfinite(value):
        message = f"metric {metric.name} is not defined on the {split} data{': ' + why if why else ''}"
        if metric.of_decisions and not why:
            message += f": {_classes_in_words(targets)}"
        raise UserError("E131", message, metric.remedy)


def _classes_in_words(targets: Tensor) -> str:
    """Which targets there are, for a message."""
    found = torch.unique(targets[targets != UNLABELLED]).tolist()
    if not found:
        return "no target is known"
    return f"{len(targets)} samples have the target{'s' if len(found) > 1 else ''} {', '.join(f'{k:g}' for k in found[:_FEW])}"


def _few(data: Samples) -> Batch:
    """A few samples: of different classes first, if each sample has one class."""
    index = torch.arange(len(data))
    if are_class_indices(data.targets):
        first = {int(target): place for place, target in reversed(list(enumerate(data.targets.tolist())))}
        chosen = torch.tensor(sorted(first.values()))
        index = torch.cat([chosen, index[~torch.isin(index, chosen)]])
    return data.at(index[:_FEW])


def check_targets(model_outputs: Outputs, task: Task) -> None:
    """Check the targets of all splits: classes must be outputs of the model, labels 0 or 1.

    Raises:
        UserError: E132.
    """
    kind = task.outputs
    if kind.form is Form.LABELS:
        _check_names(task)
    for name, data in (("train", task.train), ("validation", task.validation), ("test", task.test)):
        if not isinstance(data, Samples):
            continue
        if kind.form is Form.CLASSES and isinstance(model_outputs, Tensor) and not data.targets.is_floating_point():
            assert kind.classes_axis is not None, "classes have an axis"
            check_classes(name, data.targets, model_outputs.shape[kind.classes_axis] if model_outputs.dim() > 1 else 1)
        elif kind.form is Form.LABELS:
            known = data.targets[data.targets != UNLABELLED]
            if len(known) and (float(known.min()) < 0 or float(known.max()) > 1):
                raise UserError(
                    "E132",
                    f"targets of labels are 0 or 1; the {name} data have {float(known.min()):g} to {float(known.max()):g}",
                    "give 0 for no and 1 for yes, or name a loss of classes or numbers",
                )


def _check_names(task: Task) -> None:
    """Raise E132 if the names of labels are neither those of the columns of targets nor of no and yes."""
    columns = task.validation.targets[0].numel()
    if task.labels and not task.outputs.multi_label and not (columns == 1 and len(task.labels) == 2):  # noqa: PLR2004
        message = f"there are {len(task.labels)} labels: {', '.join(task.labels[:_FEW])}; targets have {columns} columns"
        remedy = "name each column, or no and yes for a single one; several classes need cross_entropy and an output each"
        raise UserError("E132", message, remedy)


def check_classes(split: str, targets: Tensor, classes: int) -> None:
    """Raise E132 unless all targets but −100 are classes; those of evaluated samples must be known."""
    known = targets[targets != UNLABELLED]
    if split != "train" and targets.dim() == 1 and len(known) < len(targets):
        message = (
            f"{len(targets) - len(known)} of {len(targets)} {split} samples have no class: their target is ignored, or −100"
        )
        raise UserError("E132", message, "leave them out: only samples with a class can be evaluated")
    if not known.numel():
        return
    low, high = int(known.min()), int(known.max())
    if low < 0 or high >= classes:
        raise UserError(
            "E132",
            f"labels must be in [0, {classes - 1}], one for each output of the model; the {split} data have {low} to {high}",
            "number the classes from 0"
            + (": subtract 1" if (low, high) == (1, classes) else "")
            + ", or give the model as many outputs as there are classes"
            + ('; for one output, yes or no, name the loss "binary_cross_entropy"' if classes == 1 else ""),
        )


def check_axis_of_classes(outputs: Outputs, targets: Tensor) -> None:
    """Raise E131 if the classes may be in axis 1 as well as in the last one, and no loss has been named that says which."""
    if not isinstance(outputs, Tensor) or outputs.dim() != targets.dim() + 1 or outputs.dim() <= CLASS_SCORES:
        return
    if all(outputs.movedim(axis, -1).shape[:-1] == targets.shape for axis in (1, -1)):
        message = f"the classes of outputs {tuple(outputs.shape)} may be in axis 1 or in the last one; the targets fit both"
        raise UserError("E131", message, 'name the loss: "cross_entropy" for axis 1, "token_cross_entropy" for the last one')


def check_broadcast(task: Task, outputs: Outputs, targets: Tensor) -> None:
    """Raise E131 if a loss of the user broadcasts outputs (samples, 1) and targets (samples,) to all pairs of samples."""
    own = OutputKind.of_loss(task.loss).form is Form.UNKNOWN
    if not own or not isinstance(outputs, Tensor) or outputs.shape == targets.shape:
        return
    if outputs.numel() != targets.numel():
        return
    with torch.no_grad():
        given = task.loss(in_float32(outputs), targets)
        try:
            paired = task.loss(in_float32(outputs), targets.reshape(outputs.shape))
        except Exception:  # noqa: BLE001 (the loss takes the targets as they are)
            return
    if not torch.allclose(given, paired, equal_nan=True):
        message = f"the loss compares all pairs of outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}"
        raise UserError("E131", message, f"give targets of shape {tuple(outputs.shape)}, or reshape them in the loss")


def check_ending(model: nn.Module, task: Task, batch: Batch) -> None:
    """Raise E131 if a model ends in a softmax or sigmoid though the loss takes logits, or in no log-softmax for NLLLoss."""
    run = partial(call, copied(model).eval(), batch.inputs)
    end = ending(run)
    if isinstance(task.loss, TorchLoss) and task.loss.name == "nll_loss":
        with torch.no_grad():
            sums = run().float().logsumexp(1)
        if not bool((sums.abs() < _ROUNDING).all()):
            message = "the loss takes log-probabilities, which add up to 1; the outputs do not"
            raise UserError("E131", message, 'end the model in a log-softmax, or use "cross_entropy"', path=("train",))
    elif end is not None and task.outputs.activation == end:
        message = f"the model ends in {end}, but the loss takes scores, not probabilities"
        remedy = f"return the scores before the {str(end).lower()}, which the loss applies itself"
        if end == "Sigmoid":
            remedy += f", or use {LOSS_OF_PROBABILITIES}"
        raise UserError("E131", message, remedy, path=("train",))


def unknown_loss(task: Task) -> str:
    """A sentence on what is switched off since the loss is not known; "" if it is known."""
    if task.outputs.form is not Form.UNKNOWN:
        return ""
    return (
        "What the outputs are is not known, since the loss is your own: targets are not checked against the outputs, and a "
        'teacher is not followed unless an objective says so. Say it: Task(outputs_are="classes"), "classes_last", "labels" or '
        '"numbers".'
    )
