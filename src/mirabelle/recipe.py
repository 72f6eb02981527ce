"""A list of steps: its order checked, run with its trail, each finished step kept on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from mirabelle import artifact, files
from mirabelle.errors import UserError
from mirabelle.measure import exported, measure
from mirabelle.profile import Profile
from mirabelle.run import Run
from mirabelle.step import STAGES, NeedsTraining, ReplacesModel, Step, step_from_data, step_to_data, use_of
from mirabelle.task import Task
from mirabelle.training import Joint


@dataclass(frozen=True)
class TrailEntry:
    """One step of the trail: its name, the model's profile after it (metric on validation), and the seconds it took."""

    step: str
    profile: Profile
    seconds: float

    def to_data(self) -> dict[str, Any]:
        return {"step": self.step, "profile": self.profile.to_data(), "seconds": round(self.seconds, 3)}


class Recipe:
    """Steps in a legal order.

    A model is replaced first, thinned next, quantized last: what a later stage made, an earlier one would undo.

    Args:
        steps: at least one.

    Raises:
        UserError: E105 when the order is not legal, E104 when there is no step.

    Example:
        >>> from mirabelle import prune, quantize
        >>> Recipe([quantize.Static(), prune.Weights(sparsity=0.9)])
        Traceback (most recent call last):
        ...
        mirabelle.errors.UserError: error[E105]: prune.Weights (step 2) cannot follow quantize.Static (step 1)
        help: legal order: prune.Weights, quantize.Static
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)
        if not self.steps:
            raise UserError("E104", "a recipe needs at least one step", "add a [[step]]")
        for position, (before, after) in enumerate(zip(self.steps, self.steps[1:], strict=False), start=1):
            begins = after.first_stage if isinstance(after, Joint) else after.stage
            if STAGES.index(begins) < STAGES.index(before.stage):
                legal = sorted(self.steps, key=lambda step: STAGES.index(step.stage))
                raise UserError(
                    "E105",
                    f"{use_of(after)} (step {position + 1}) cannot follow {use_of(before)} (step {position})",
                    f"legal order: {', '.join(use_of(step) for step in legal)}",
                )

        for step in self.steps:
            if isinstance(step, NeedsTraining) and step.needs_training and step.train is None:
                raise UserError("E111", f"{use_of(step)} needs a training", "give `train`, or put the step into training.Joint")

    @staticmethod
    def from_data(data: Any) -> Recipe:
        return Recipe([step_from_data(table) for table in data])

    def to_data(self) -> list[dict[str, Any]]:
        return [step_to_data(step) for step in self.steps]

    def run(self, model: nn.Module, task: Task, run: Run, *, dense: nn.Module) -> tuple[nn.Module, nn.Module, list[TrailEntry]]:
        """Walk the steps, or go on where a killed run stopped.

        Args:
            model: the start.
            task: with its teacher.
            run: each step works in its folder `steps/<k>-<step>`.
            dense: the module from which `model` descends.

        Returns:
            The model at the end, the dense module from which it descends, and the trail.
        """
        trail = []
        for position, step in enumerate(self.steps, start=1):
            name = use_of(step)
            place = run.within(f"steps/{position}-{name.lower()}")
            origin = step.origin(dense, place) if isinstance(step, ReplacesModel) else dense
            model, entry = kept(name, place, origin, task, partial(step, model, task, place))
            trail.append(entry)
            dense = origin
        return model, dense, trail


def kept(name: str, run: Run, dense: nn.Module, task: Task, work: Callable[[], nn.Module]) -> tuple[nn.Module, TrailEntry]:
    """What `work` gives, read back from the run's folder: done now, or there already.

    What the next step gets is what the disk holds, so that a run that was killed and one that was not see the same model.
    `profile.json` is written last: where it stands, the work is done.
    """
    done = run.folder / "profile.json"
    if not done.is_file():
        run.event("begin", step=name)
        begin = time.monotonic()
        artifact.save(work(), run.folder)
        model = artifact.load(dense, run.folder)
        seconds = time.monotonic() - begin
        profile, _ = measure(model, task, task.validation, exported(model, task))
        files.write_json(done, {"profile": profile.to_data(), "seconds": seconds})
        (run.folder / "checkpoint.safetensors").unlink(missing_ok=True)
        run.event("profile", step=name, profile=profile.to_data(), seconds=round(seconds, 3))
    else:
        model = artifact.load(dense, run.folder)
    data = files.read_json(done)
    return model, TrailEntry(name, Profile.from_data(data["profile"]), data["seconds"])
