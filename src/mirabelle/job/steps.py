"""A recipe walked step by step, each finished step kept on disk and measured: the trail."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from mirabelle import artifact
from mirabelle.artifact.codecs.codec import Codec, codecs_named
from mirabelle.inspection.measure import Files, exported, measure
from mirabelle.run import files
from mirabelle.run.run import Run
from mirabelle.step import ReplacesModel, Step, folder_of, use_of
from mirabelle.task.profile import Profile, StepResult
from mirabelle.task.task import Task
from mirabelle.training.checkpoint import seconds_before


@dataclass(frozen=True)
class Reached:
    """A model at some place of a run.

    Args:
        model: in eval mode.
        files: the model as it ships, where this process has exported it already.
    """

    model: nn.Module
    files: Files | None = None

    def exported(self, task: Task, codecs: Sequence[Codec] = ()) -> Files:
        """The model as it ships; `codecs` of a user's own are tried besides those that Mirabelle ships."""
        return self.files or exported(self.model, task, codecs)


def walk(
    steps: Sequence[Step], start: Reached, task: Task, run: Run, *, dense: nn.Module
) -> tuple[Reached, nn.Module, list[StepResult]]:
    """Walk the steps, or go on where a killed run stopped.

    A callback that returns `Stop` when a step has been measured ends the walk there; that it did is a decision of the run.

    Args:
        steps: of a recipe.
        start: where the first step begins.
        task: with its teacher.
        run: each step works in its folder `steps/<k>-<step>`.
        dense: the module from which the start descends.

    Returns:
        The end, the dense module from which it descends, and the trail.
    """
    trail, reached = [], start
    for position, step in enumerate(steps, start=1):
        name = use_of(step)
        place = run.within(folder_of(position, step))
        origin = step.origin(dense, place) if isinstance(step, ReplacesModel) else dense
        reached, entry = run_or_resume(name, place, origin, task, partial(step, reached.model, task, place))
        trail.append(entry)
        dense = origin
        if place.decided("stopped") is not None:
            break
    return reached, dense, trail


def run_or_resume(
    name: str, run: Run, dense: nn.Module, task: Task, work: Callable[[], nn.Module]
) -> tuple[Reached, StepResult]:
    """What `work` gives, read back from the run's folder: done now, or there already.

    What the next step gets is what the disk holds, so that a run that was killed and one that was not see the same model.
    `profile.json` is written last: where it stands, the work is done.
    """
    done, shipped = run.folder / "profile.json", None
    if not done.is_file():
        run.event("begin", step=name)
        before, begin = seconds_before(run.folder / "checkpoint.safetensors"), time.monotonic()
        artifact.save(work(), run.folder)
        model = artifact.load(dense, run.folder)
        seconds = before + time.monotonic() - begin
        shipped = exported(model, task, codecs_of(run))
        profile, _ = measure(model, task, task.validation, shipped)
        _tell(run, name, profile, seconds)
        files.write_json(done, {"profile": profile.to_data(), "seconds": seconds})
    else:
        model = artifact.load(dense, run.folder)
    (run.folder / "checkpoint.safetensors").unlink(missing_ok=True)  # here, since a kill may have come before it
    data = files.read_json(done)
    return Reached(model, shipped), StepResult(name, Profile.from_data(data["profile"]), data["seconds"])


def codecs_of(run: Run) -> list[Codec]:
    """The codecs of a user's own that the run packs with."""
    return codecs_named(run.journal.document.get("artifact", {}).get("codecs", ()))


def _tell(run: Run, name: str, profile: Profile, seconds: float) -> None:
    """Tell what the step gave; a callback may answer that the steps after it are not to be taken."""
    stop = run.event("profile", step=name, profile=profile.to_data(), seconds=round(seconds, 3))
    if stop is not None:
        run.decide("stopped", lambda: stop.why)
