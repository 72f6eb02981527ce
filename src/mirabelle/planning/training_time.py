"""The training of a plan: as long as the time allows, with a measured learning rate."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mirabelle.job.comparison import step_seconds
from mirabelle.planning.learning_rate import learning_rate
from mirabelle.planning.plan import Plan
from mirabelle.run.run import Run
from mirabelle.task.task import Task
from mirabelle.training.settings import Training

_BATCH = 64
_MOST_EPOCHS = 60
_SHARE = 0.7  # of the time that is left, for the training of one attempt
_FOR_RATE = 0.2  # of the time that is left, at most, for the choice of a learning rate
_LEAST_STEPS = 100  # a training that is shorter is not worth its time


def training_of_plan(
    plan: Plan,
    model: nn.Module,
    task: Task,
    run: Run,
    *,
    left: Callable[[], float],
    learned: bool,
    tell: Callable[[str], None],
) -> Training | None:
    """A training under the teacher as long as the time allows; None if there is no time.

    Args:
        plan: with a step that can be trained.
        model: before the plan.
        task: with its teacher.
        run: for measurements.
        left: seconds that are left.
        learned: whether coded weights are trained with their bits in the loss.
        tell: is given a line.
    """
    training = Training(epochs=_MOST_EPOCHS, batch_size=min(_BATCH, max(len(task.train) // 8, 1)))
    steps = plan.steps(training, learned=learned)
    place = next(place for place, step in enumerate(steps) if getattr(step, "train", None) is not None)
    for step in steps[:place]:
        model = step(model, task, run.within("before"))
    trained = steps[place].preview(model, task, run.within("preview")).trained
    seconds = step_seconds(trained, task, training, run.within("timed"), budget=0.0)
    if left() < _LEAST_STEPS * seconds:
        tell(f"no time is left for a training: {seconds:.3g} s for each step")
        return None
    rate = learning_rate(trained, task, training, run, seconds=_FOR_RATE * left(), each=seconds)
    per_epoch = task.train.steps(training.batch_size)
    count = int(min(max(_SHARE * left() / seconds, _LEAST_STEPS), _MOST_EPOCHS * per_epoch))
    epochs = count // per_epoch
    told = f"{epochs} epochs" if epochs else f"{count} steps"
    tell(f"training of {told} with learning rate {rate:g}, about {count * seconds:.3g} s")
    length = {"epochs": epochs} if epochs else {"steps": count}
    return Training(**length, batch_size=training.batch_size, lr=rate)  # type: ignore[arg-type]
