"""The learning rate of a training, measured: several short trainings, judged on validation data."""

from __future__ import annotations

import dataclasses
import math
import tempfile

from torch import nn

from mirabelle.errors import UserError
from mirabelle.model.state import copied
from mirabelle.run.run import Run
from mirabelle.task.task import Task
from mirabelle.training import fit, outputs_of
from mirabelle.training.settings import Training

RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
_STEPS, _FEWEST = 60, 10  # of each short training, whose rate falls as in a long one
_JUDGED = 1000  # validation samples


def learning_rate(
    model: nn.Module, task: Task, training: Training, run: Run, *, seconds: float = math.inf, each: float = 0.0
) -> float:
    """The rate with which a short training of a model reaches the lowest loss; it is recorded in the run.

    Each rate of `RATES` trains a copy for 60 steps, or fewer if the time is short, with the schedule of the long training in so
    few steps. The loss is that of the task on up to 1,000 validation samples. A rate with which the loss is not finite is not
    chosen.

    Args:
        model: to be trained.
        task: its training and validation data; its teacher guides, as in the long training.
        training: the long training.
        run: records the rate.
        seconds: that all short trainings may take.
        each: seconds of a step.

    Raises:
        UserError: E201 if no rate gives a finite loss.
    """

    steps = int(min(_STEPS, max(seconds / (len(RATES) * max(each, 1e-9)), _FEWEST)))

    def measured() -> float:
        data = task.validation.drawn(_JUDGED, 0)
        few = task.replace(validation=task.validation.drawn(2, 0))
        losses: dict[float, float] = {}
        for rate in RATES:
            short = dataclasses.replace(training, epochs=None, steps=steps, lr=rate, keep="last", patience=None, until=None)
            try:
                with tempfile.TemporaryDirectory() as folder:
                    trained = fit(copied(model), few, short, Run(folder, seed=run.seed))
            except UserError as error:
                if error.code != "E201":
                    raise
                continue
            loss = float(task.loss(outputs_of(trained, data)[0], data.targets))
            if math.isfinite(loss):
                losses[rate] = loss
        if not losses:
            raise UserError("E201", "no learning rate trains the model: every loss became infinite", "check the data")
        return min(losses, key=lambda rate: losses[rate])

    return run.decide("lr", measured)
