"""The teacher's answers as the targets of a training set."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mirabelle.errors import UserError
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.task.batch import Inputs, Samples
from mirabelle.task.task import Task
from mirabelle.training.teacher_targets import with_answers


def relabelled(task: Task, answer: Callable[[Inputs], Tensor], *, batch_size: int = 100) -> Task:
    """The same task, whose training targets are what a teacher answers to the training inputs.

    With the sequences that a teacher generates, `lambda inputs: teacher.generate(**inputs, num_beams=5)` say, this is
    sequence-level distillation: the student learns from the most likely answers alone. With a classifier's decisions it is
    training on pseudo-labels. Both as the task itself has it, kept on disk, by `Training(targets="teacher")`.

    Args:
        task: its validation and test targets stay.
        answer: targets of a batch, (batch, ...). Sequences may be of another length in every batch; those that end earlier are
            filled up with −100, which cross entropy leaves out.
        batch_size: samples that are asked for at a time.

    Raises:
        UserError: E131 for training data that are a stream, or another number of answers than of inputs.

    Example:
        >>> x = torch.tensor([[1.0, 3.0], [4.0, 2.0]]).repeat(5, 1)
        >>> task = Task(train=(x, torch.zeros(10, dtype=torch.long)), test=(x, torch.zeros(10, dtype=torch.long)))
        >>> sorted(set(relabelled(task, lambda inputs: inputs.argmax(1)).train.targets.tolist()))
        [0, 1]

    Source: Kim, Rush 2016, "Sequence-Level Knowledge Distillation", arXiv:1606.07947.
    """
    if not isinstance(task.train, Samples):
        raise UserError("E131", "the training data come as a stream, which cannot be relabelled", "give samples in memory")
    answers = []
    with torch.no_grad():
        for batch in task.train.batches(batch_size):
            answers.append(answer(batch.inputs).detach().clone())
            if len(answers[-1]) != len(batch):
                message = f"{len(answers[-1])} answers came for {len(batch)} inputs"
                raise UserError("E131", message, "give one answer an input")
    longest = max(part.shape[-1] for part in answers)
    if answers[0].dim() > 1:
        answers = [F.pad(part, (0, longest - part.shape[-1]), value=UNLABELLED) for part in answers]
    return with_answers(task, torch.cat(answers))
