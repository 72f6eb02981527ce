"""Replace the targets of a training set by the answers of a teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mirabelle.errors import UserError
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.task.batch import Inputs
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task
from mirabelle.training.teacher_targets import with_answers


def relabelled(task: Task, answer: Callable[[Inputs], Tensor], *, batch_size: int = 100) -> Task:
    """The same task with new training targets: the answers of a teacher to the training inputs.

    If the answers are sequences that the teacher generates, for example `lambda inputs: teacher.generate(**inputs,
    num_beams=5)`, this is sequence-level distillation. If they are the decisions of a classifier, it is training on
    pseudo-labels. In a recipe, `Training(targets="teacher")` does both with the task's own teacher, and keeps the answers on
    disk.

    Args:
        task: its validation and test targets are not changed.
        answer: inputs of a batch -> its targets, (batch, ...). The length of sequences may differ between batches; shorter ones
            are padded with −100, which cross entropy ignores.
        batch_size: number of samples in one call of `answer`.

    Raises:
        UserError: E131 if the training data are a stream, or if `answer` returns another number of targets than of inputs.

    Example:
        >>> x = torch.tensor([[1.0, 3.0], [4.0, 2.0]]).repeat(5, 1)
        >>> task = Task(train=(x, torch.zeros(10, dtype=torch.long)), test=(x, torch.zeros(10, dtype=torch.long)))
        >>> sorted(set(relabelled(task, lambda inputs: inputs.argmax(1)).train.targets.tolist()))
        [0, 1]

    Source: Kim, Rush 2016, "Sequence-Level Knowledge Distillation", arXiv:1606.07947.
    """
    if not isinstance(task.train, Samples):
        raise UserError("E131", "the training data are a stream, which cannot be relabelled", "give the data as samples")
    answers = []
    with torch.no_grad():
        for batch in task.train.batches(batch_size):
            answers.append(answer(batch.inputs).detach().clone())
            if len(answers[-1]) != len(batch):
                message = f"the function returned {len(answers[-1])} answers for {len(batch)} inputs"
                raise UserError("E131", message, "return one answer for each input")
    longest = max(part.shape[-1] for part in answers)
    if answers[0].dim() > 1:
        answers = [F.pad(part, (0, longest - part.shape[-1]), value=UNLABELLED) for part in answers]
    return with_answers(task, torch.cat(answers))
