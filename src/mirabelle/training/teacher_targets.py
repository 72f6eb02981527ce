"""Predictions of the teacher as training targets: computed once and cached on disk."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.model.device import at_work, device_of_job, home
from mirabelle.model.state import copied, fingerprint, in_eval_mode
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.run import files
from mirabelle.run.run import Run
from mirabelle.task.batch import Batch, Inputs, call
from mirabelle.task.indexed import Indexed
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task
from mirabelle.training.evaluation import results_by_batch
from mirabelle.training.teacher import kept_or_made, write_cache

if TYPE_CHECKING:
    from pathlib import Path

    from mirabelle.training.execution import Execution


def answered(task: Task, run: Run, execution: Execution | None = None) -> Task:
    """A copy of the task whose training targets are its teacher's predictions: generated sequences, or classes.

    The predictions are cached under `teacher/` in the run's folder, named by a digest of the teacher and the data.

    Args:
        task: a task with a teacher, and training data in memory.
        run: stores the cache and records an event about it.
        execution: precision and layout in which the teacher runs.

    Raises:
        UserError: E111 without a teacher, or if it predicts neither sequences nor classes; E131 for a stream.

    Source: Kim, Rush 2016, "Sequence-Level Knowledge Distillation", arXiv:1606.07947, section 3.2.
    """
    data = _samples(task)
    if task.teacher is None:
        raise _nobody()
    key = files.digest(f"{fingerprint(task.teacher)} {data.digest()} {task.generation} {execution}".encode())
    path = run.journal.cache / "teacher" / f"answers-{key}.safetensors"
    guide = task if execution is None else task.with_teacher(execution.laid_out(copied(task.teacher)))
    kept = kept_or_made(path, run, partial(_made, path, guide, run, execution))
    assert kept is not None, "what is held in memory is never left out"
    return with_answers(task, kept["answers"])


def _made(path: Path, task: Task, run: Run, execution: Execution | None) -> dict[str, Tensor] | None:
    parts = list(results_by_batch(task.train, partial(answer, task, execution=execution)))
    if not parts:
        return None
    answers = torch.cat(parts)
    try:
        write_cache(path, {"answers": answers})
        run.event("teacher", cached=True, samples=len(answers), bytes=answers.nbytes)
    except UserError as error:  # if the disk is full, the run continues without the cache
        run.event("teacher", cached=False, why=error.message)
    return {"answers": answers}


def answer(task: Task, batch: Batch, execution: Execution | None = None) -> Tensor:
    """The teacher's predictions for a batch, as targets; tokens that are ignored in the targets stay ignored.

    Raises:
        UserError: E111 without a teacher, or if it predicts neither sequences nor classes.
    """
    if task.teacher is None:
        raise _nobody()
    run = partial(_run, task.teacher, execution)
    with at_work(task.teacher), torch.inference_mode(), in_eval_mode(task.teacher):
        if task.generation is not None:
            return task.generation(run, batch.inputs).clone()
        if not task.outputs.classifies:
            message = "the teacher's outputs are neither classes nor sequences, so they cannot be used as targets"
            raise UserError("E111", message, 'set targets = "data", or the `generation` of the task', path=("targets",))
        found = task.outputs.chosen(run(batch.inputs))
    single = found.dim() == 1  # whole samples without a label get the teacher's class
    return found.clone() if single else found.masked_fill(batch.targets == UNLABELLED, UNLABELLED)


def _run(teacher: nn.Module, execution: Execution | None, inputs: Inputs) -> Tensor:
    if execution is None:
        return home(call(teacher, inputs))  # type: ignore[no-any-return]
    with execution.autocast(device_of_job(teacher)):
        return home(call(teacher, execution.inputs(inputs)))  # type: ignore[no-any-return]


def with_answer(task: Task, batch: Batch) -> Batch:
    """A batch with the teacher's predictions as targets.

    Raises:
        UserError: E111 without a teacher, or if it predicts neither sequences nor classes.
    """
    targets = answer(task, batch)
    inputs = batch.inputs if task.generation is None else task.generation.reading(batch.inputs, targets)
    return Batch(inputs, targets, batch.index, batch.view)


def with_answers(task: Task, answers: Tensor) -> Task:
    """A copy of the task with other training targets; for generated sequences they also become the decoder input.

    Args:
        task: the task; its validation and test targets stay unchanged.
        answers: targets (samples, ...); sequences are padded with −100, and cut to the length of the decoder input.
    """
    data = _samples(task)
    if isinstance(data, Indexed) and task.generation is None:
        return task.replace(train=data.with_targets(lambda _: answers))
    inputs = data.inputs
    if task.generation is not None:
        length = task.generation.length(inputs)
        answers = F.pad(answers[:, :length], (0, max(0, length - answers.shape[1])), value=UNLABELLED)
        inputs = task.generation.reading(inputs, answers)
    return task.replace(train=Samples(inputs, answers))


def _samples(task: Task) -> Samples:
    if not isinstance(task.train, Samples):
        raise UserError("E131", "the training data are a stream, which cannot be relabelled", "give data in memory")
    return task.train


def _nobody() -> UserError:
    return UserError("E111", 'targets = "teacher" needs a teacher', 'set targets = "data"', path=("targets",))
