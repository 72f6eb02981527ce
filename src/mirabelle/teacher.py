"""The teacher's outputs: computed once for the training data and kept on disk, or live where no sample is met twice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mirabelle import files
from mirabelle.batch import Batch, Samples, Stream, call
from mirabelle.errors import UserError
from mirabelle.run import Run
from mirabelle.state import fingerprint

if TYPE_CHECKING:
    from mirabelle.training.execution import Execution

Teacher = Callable[[Batch], Tensor]
_BATCH = 500


def teacher_outputs(teacher: nn.Module, data: Samples | Stream, run: Run, *, augmented_in: Execution | None = None) -> Teacher:
    """A function from a batch of `data` to the teacher's outputs for it, without gradient.

    For `Samples` all outputs are computed once, in float32, held in memory and kept under `teacher/` in the run's folder,
    named by a digest of the teacher and the data, so that another teacher or other data never meets them. For a `Stream`
    the teacher runs with every batch; so it does for augmented samples, which are different each time, and then in the
    training's own precision and layout.

    Args:
        teacher: is put into eval mode.
        data: that are trained on.
        run: takes the cache and is told of it.
        augmented_in: how the model that is trained runs, where samples are augmented.
    """
    teacher = teacher.eval()
    if isinstance(data, Stream):
        run.event("teacher", cached=False, why="the loader shuffles itself, so its samples cannot be told apart")
        return lambda batch: _outputs(teacher, batch)
    if augmented_in is not None:
        run.event("teacher", cached=False, why="the samples are augmented, so none is met twice")
        return _alongside(teacher, augmented_in)
    key = files.digest(fingerprint(teacher).encode(), data.digest().encode(), b"view 0")
    path = run.journal.folder / "teacher" / f"{key}.safetensors"
    if path.is_file():
        outputs = files.read_tensors(path)[0]["outputs"]
    else:
        outputs = torch.cat([_outputs(teacher, batch) for batch in data.batches(_BATCH)])
        _keep(path, outputs, run)

    def look_up(batch: Batch) -> Tensor:
        assert batch.index is not None, "a batch of samples has its index"
        assert batch.view == 0, "outputs are kept for samples as they lie"
        return outputs[batch.index]

    return look_up


def _alongside(teacher: nn.Module, execution: Execution) -> Teacher:
    """A copy of the teacher that runs as the model that is trained."""
    guide = execution.laid_out(copy.deepcopy(teacher))

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
