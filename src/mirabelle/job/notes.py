"""What a user must know about data and models before the results: `check`, the run and the report show these sentences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mirabelle.job.dry_run import JobPlan
from mirabelle.model.state import in_eval_mode
from mirabelle.sources.models.huggingface import HuggingFaceModel
from mirabelle.sources.models.onnx_graph import OnnxModule
from mirabelle.task.batch import call, tensors_of
from mirabelle.task.preprocessing.table import Table
from mirabelle.task.task import Task
from mirabelle.task.unusual_inputs import unusual_inputs
from mirabelle.task.unusual_targets import unusual_targets

_MOST = 8  # names in a sentence
_TOGETHER = 3  # samples of a batch in which one is compared with itself alone
_ROUNDING = 1e-3
_MIXED = (
    "The outputs of the {} for a sample depend on the other samples of its batch: every number is that of the batches of the "
    "evaluation, and single samples get other answers."
)


def notes_of(plan: JobPlan) -> tuple[str, ...]:
    """Sentences on the data (left out, cut, changed, constant) and on weights that no file contains,
    and on models that mix samples."""
    models = {"model": plan.model, "teacher": plan.teacher}
    loaded = {what: model for what, model in models.items() if isinstance(model, HuggingFaceModel)}
    untrained = [
        f"The {what} has tensors that its file does not contain; they are random until they are trained: "
        f"{_few(model.untrained)}."
        for what, model in loaded.items()
        if model.untrained
    ]
    unused = [
        f"The file of the {what} has tensors that the {what} does not have, and that are left out: {_few(model.unused)}."
        for what, model in loaded.items()
        if model.unused
    ]
    compared = [
        f"The ONNX file of the {what} leaves sizes free; it was compared with ONNX Runtime at sizes found by trial: "
        f"{model.compared_at}."
        for what, model in models.items()
        if isinstance(model, OnnxModule) and model.compared_at
    ]
    widened = [
        f"The ONNX file of the {what} is in half precision; it is computed, trained and exported in float32, its inputs and "
        f"outputs included."
        for what, model in models.items()
        if isinstance(model, OnnxModule) and model.halved
    ]
    mixed = [_MIXED.format(what) for what, model in models.items() if model is not None and mixes_samples(model, plan.task)]
    table = plan.task.preprocessing
    widths = [table.sentence] if isinstance(table, Table) and table.features != table.columns else []
    return (
        *widths,
        *plan.task.notes,
        *unusual_inputs(plan.task),
        *unusual_targets(plan.task),
        *untrained,
        *unused,
        *compared,
        *widened,
        *mixed,
    )


def mixes_samples(model: nn.Module, task: Task) -> bool:
    """Whether the outputs of a model in eval mode for a sample depend on the other samples of the batch.

    False as well if the model draws random numbers, takes no single sample, or gives outputs of another shape for it.

    Example:
        >>> class Centred(nn.Module):
        ...     def forward(self, x):
        ...         return x - x.mean(0)
        >>> data = (torch.eye(8), torch.arange(8))
        >>> task = Task(train=data, test=data)
        >>> mixes_samples(Centred(), task), mixes_samples(nn.Identity(), task)
        (True, False)
    """
    batch, alone = task.example(_TOGETHER), task.example(1)
    given = zip(tensors_of(batch.inputs), tensors_of(alone.inputs), strict=True)
    if len(batch) < _TOGETHER or not all(_are_close(many[:1], one) for many, one in given):
        return False
    with in_eval_mode(model), torch.no_grad():
        try:
            together, again, by_itself = (tensors_of(call(model, one.inputs)) for one in (batch, batch, alone))
        except Exception:  # noqa: BLE001 (a model that takes no single sample)
            return False
    if not all(map(_are_close, together, again)):
        return False
    firsts = [many[:1] for many in together if many.dim() and len(many) == _TOGETHER]
    same_shape = len(firsts) == len(by_itself) and all(
        many.shape == one.shape for many, one in zip(firsts, by_itself, strict=True)
    )
    return same_shape and not all(map(_are_close, firsts, by_itself))


def _are_close(one: Tensor, other: Tensor) -> bool:
    one, other = one.double(), other.double()
    allowed = _ROUNDING * float(one.abs().nan_to_num(0.0, 0.0, 0.0).max()) if one.numel() else 0.0
    return torch.allclose(one, other, rtol=_ROUNDING, atol=allowed, equal_nan=True)


def _few(names: Sequence[str]) -> str:
    """The first names, and how many there are if not all are shown."""
    return ", ".join(names[:_MOST]) + (f", … ({len(names)} in all)" if len(names) > _MOST else "")
