"""The teacher's outputs: computed once for the training data and kept on disk, or live where no sample is met twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mirabelle import files
from mirabelle.batch import Batch, Samples, Stream, call
from mirabelle.errors import UserError
from mirabelle.run import Run
from mirabelle.state import copied, fingerprint

if TYPE_CHECKING:
    from mirabelle.augmentation import Augmentation
    from mirabelle.training.execution import Execution

Teacher = Callable[[Batch], Tensor]
_BATCH = 500


def teacher_outputs(
    teacher: nn.Module,
    data: Samples | Stream,
    run: Run,
    *,
    augment: Augmentation | None = None,
    execution: Execution | None = None,
) -> Teacher:
    """A function from a batch of `data` to the teacher's outputs for it, without gradient.

    For `Samples` all outputs are computed once, in float32, held in memory and kept under `teacher/` in the run's folder,
    named by a digest of the teacher and the data, so that another teacher or other data never meets them. For a `Stream`
    the teacher runs with every batch. Augmented samples are seen in the training's own precision and layout: with every
    batch, or, where their views recur, once a view.

    Args:
        teacher: is put into eval mode.
        data: that are trained on.
        run: takes the cache and is told of it.
        augment: how samples are changed.
        execution: how the model that is trained runs; needed where samples are augmented.
    """
    teacher = teacher.eval()
    if isinstance(data, Stream):
        run.event("teacher", cached=False, why="the loader shuffles itself, so its samples cannot be told apart")
        return lambda batch: _outputs(teacher, batch)
    if augment is not None and augment.views is None:
        run.event("teacher", cached=False, why="the samples are augmented, so none is met twice")
        return _alongside(teacher, execution)
    return _Kept(teacher, data, run, augment, execution)


class _Kept:
    """A teacher's outputs for the samples as they lie, or for each of their views."""

    def __init__(
        self, teacher: nn.Module, data: Samples, run: Run, augment: Augmentation | None, execution: Execution | None
    ) -> None:
        self._data, self._run, self._augment = data, run, augment
        self._taught: Teacher = partial(_outputs, teacher) if augment is None else _alongside(teacher, execution)
        manner = "" if augment is None else f" {augment} {execution}"
        self._key = f"{fingerprint(teacher)} {data.digest()}{manner}"
        self._outputs: dict[int, Tensor] = {} if augment is not None else {0: self._of(0)}

    def __call__(self, batch: Batch) -> Tensor:
        assert batch.index is not None, "a batch of samples has its index"
        if batch.view not in self._outputs:
            self._outputs[batch.view] = self._of(batch.view)
        return self._outputs[batch.view][batch.index]

    def _of(self, view: int) -> Tensor:
        key = files.digest(self._key.encode(), f"view {view}".encode())
        path = self._run.journal.folder / "teacher" / f"{key}.safetensors"
        if path.is_file():
            return files.read_tensors(path)[0]["outputs"]
        batches = self._data.batches(_BATCH)
        if self._augment is not None:
            batches = (self._augment.seen(batch, view) for batch in batches)
        outputs = torch.cat([self._taught(batch) for batch in batches])
        _keep(path, outputs, self._run)
        return outputs


def _alongside(teacher: nn.Module, execution: Execution | None) -> Teacher:
    """A copy of the teacher that runs as the model that is trained."""
    assert execution is not None, "a training runs in some way"
    guide = execution.laid_out(copied(teacher))

    def outputs(batch: Batch) -> Tensor:
        with torch.inference_mode(), execution.autocast():
            found: Tensor = call(guide, execution.inputs(batch.inputs))
        return found.to(torch.float32, copy=True)  # made outside of inference mode, it may be saved for the gradient

    return outputs


def _outputs(teacher: nn.Module, batch: Batch) -> Tensor:
    with torch.inference_mode():
        outputs: Tensor = call(teacher, batch.inputs)
    return outputs.clone()


def _keep(path: Path, outputs: Tensor, run: Run) -> None:
    """Write the cache; a full disk costs a repeat after a kill, not the run."""
    try:
        files.write_tensors(path, {"outputs": outputs})
        run.event("teacher", cached=True, samples=len(outputs))
    except UserError as error:
        run.event("teacher", cached=False, why=error.message)
