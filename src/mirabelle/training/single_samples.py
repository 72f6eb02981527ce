"""Training batches of a single sample: batch norm takes none, since one value has no variance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mirabelle.errors import UserError, is_out_of_memory
from mirabelle.model.device import CPU
from mirabelle.model.state import copied
from mirabelle.numerics.draws import global_draws
from mirabelle.run.run import Run
from mirabelle.task.batch import Batch, call, map_tensors, on_device, place_of

if TYPE_CHECKING:
    from mirabelle.task.task import Task


class SingleSamples:
    """Decides which batches of a training are left out: those of one sample, if the model cannot be trained on one.

    Args:
        model: a copy of it is tried, in training mode, when the first such batch comes.
        run: is told when the first batch is left out.
    """

    def __init__(self, model: nn.Module, run: Run) -> None:
        self._model, self._run = model, run
        self._taken: bool | None = None
        self._why = ""
        self._told: set[str] = set()

    def left_out(self, batch: Batch, smallest: int) -> bool:
        """Whether a batch is left out.

        Args:
            batch: the part of this process.
            smallest: number of samples of the smallest part of any process; a batch with an empty part is left out.
        """
        if smallest > 1:
            return False
        if smallest == 0:
            self._tell("batches with fewer samples than processes are left out of the training")
            return True
        if self._taken is None:
            self._why = why_not_one_sample(self._model, batch) or ""
            self._taken = not self._why
            if self._why:
                self._tell(f"batches of a single sample are left out of the training: {self._why}")
        return not self._taken

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._run.event("warning", text=text)

    def check_some_are_left(self, count: int) -> None:
        """Raise E121 if the number of batches in an epoch that are not left out is 0."""
        if count == 0 and not self._why:
            message = "every training batch has fewer samples than there are processes"
            raise UserError("E121", message, "start fewer processes, or give larger batches", path=("train",))
        if count == 0:
            raise only_single_samples(self._why)


def why_not_one_sample(model: nn.Module, batch: Batch) -> str | None:
    """Why a model cannot be trained on the first sample of a batch alone; None if it can.

    Args:
        model: the model; a copy of it runs in training mode.
        batch: gives the sample.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        >>> why_not_one_sample(model, Batch(torch.zeros(4, 3), torch.zeros(4)))
        'Expected more than 1 value per channel when training, got input size torch.Size([1, 2])'
    """
    try:
        with torch.no_grad(), global_draws():
            one = map_tensors(batch.inputs, lambda tensor: tensor[:1])
            call(copied(model).train(), on_device(one, place_of(model) or CPU))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return str(error).partition("\n")[0] or type(error).__name__
    return None


def check_parts_of_batches(model: nn.Module, task: Task, batch_size: int, processes: int) -> None:
    """Raise E121 if full batches leave a process a single sample, on which the model cannot be trained."""
    smallest = task.train.batch_size(batch_size) // processes
    if smallest == 1 and (why := why_not_one_sample(model, task.example(1))):
        raise only_single_samples(why)


def only_single_samples(why: str) -> UserError:
    """The E121 error for a training whose batches all have one sample, on which the model cannot be trained."""
    message = f"every training batch has one sample, and the model cannot be trained on one: {why}"
    return UserError("E121", message, "give more training samples, or a larger batch size", path=("train",))
