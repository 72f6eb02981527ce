"""The teacher's answers as the targets of a training: found once, and kept on disk."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.model.state import copied, fingerprint, in_eval_mode
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.run import files
from mirabelle.run.run import Run
from mirabelle.task.batch import Batch, Inputs, Samples, call
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.training.execution import Execution

_BATCH = 500


def answered(task: Task, run: Run, execution: Execution | None = None) -> Task:
    """The same task, whose training targets are its teacher's answers: the sequences that it writes, or its decisions.

    Answers are kept under `teacher/` in the run's folder, named by a digest of the teacher and the data.

    Args:
        task: with a teacher, and samples in memory.
        run: takes the cache and is told of it.
        execution: how the model that is trained runs; the teacher then runs so, too.

    Raises:
        UserError: E111 without a teacher, or one whose answers are neither sequences nor classes; E131 for a stream.

    Source: Kim, Rush 2016, "Sequence-Level Knowledge Distillation", arXiv:1606.07947, section 3.2.
    """
    data = _samples(task)
    if task.teacher is None:
        raise _nobody()
    key = files.digest(f"{fingerprint(task.teacher)} {data.digest()} {task.generation} {execution}".encode())
    path = run.journal.cache / "teacher" / f"answers-{key}.safetensors"
    if path.is_file():
        return with_answers(task, files.read_tensors(path)[0]["answers"])
    guide = task if execution is None else task.with_teacher(execution.laid_out(copied(task.teacher)))
    answers = torch.cat([answer(guide, batch, execution) for batch in data.batches(_BATCH)])
    try:
        files.write_tensors(path, {"answers": answers})
        run.event("teacher", cached=True, samples=len(answers), bytes=answers.nbytes)
    except UserError as error:  # a full disk costs a repeat after a kill, not the run
        run.event("teacher", cached=False, why=error.message)
    return with_answers(task, answers)


def answer(task: Task, batch: Batch, execution: Execution | None = None) -> Tensor:
    """What the teacher answers to a batch, as targets of it; tokens without a target stay without one.

    Raises:
        UserError: E111 without a teacher, or one whose answers are neither sequences nor classes.
    """
    if task.teacher is None:
        raise _nobody()
    run = partial(_run, task.teacher, execution)
    with torch.inference_mode(), in_eval_mode(task.teacher):
        if task.generation is not None:
            return task.generation(run, batch.inputs).clone()
        if not task.outputs.classifies:
            message = "the teacher's answers are neither classes nor sequences, so they are no targets"
            raise UserError("E111", message, 'targets = "data", or `generation` of the task', path=("targets",))
        found = task.outputs.chosen(run(batch.inputs))
    single = found.dim() == 1  # a sample without a label gets the teacher's
    return found.clone() if single else found.masked_fill(batch.targets == UNLABELLED, UNLABELLED)


def _run(teacher: nn.Module, execution: Execution | None, inputs: Inputs) -> Tensor:
    if execution is None:
        return call(teacher, inputs)  # type: ignore[no-any-return]
    with execution.autocast():
        return call(teacher, execution.inputs(inputs))  # type: ignore[no-any-return]


def with_answer(task: Task, batch: Batch) -> Batch:
    """A batch with its teacher's answers as targets; errors as of `answer`."""
    targets = answer(task, batch)
    inputs = batch.inputs if task.generation is None else task.generation.reading(batch.inputs, targets)
    return Batch(inputs, targets, batch.index, batch.view)


def with_answers(task: Task, answers: Tensor) -> Task:
    """The same task with these training targets; what is written reads them where the model writes sequences.

    Args:
        task: its validation and test targets stay.
        answers: (samples, ...); of sequences, filled up with −100, as many symbols as the inputs hold count.
    """
    data = _samples(task)
    inputs = data.inputs
    if task.generation is not None:
        length = task.generation.length(inputs)
        answers = F.pad(answers[:, :length], (0, max(0, length - answers.shape[1])), value=UNLABELLED)
        inputs = task.generation.reading(inputs, answers)
    return task.replace(train=Samples(inputs, answers))


def _samples(task: Task) -> Samples:
    if not isinstance(task.train, Samples):
        raise UserError("E131", "the training data come as a stream, which cannot be relabelled", "give samples in memory")
    return task.train


def _nobody() -> UserError:
    return UserError("E111", "targets of a teacher need one, and none is there", 'targets = "data"', path=("targets",))
