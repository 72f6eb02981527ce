"""Run the steps of a recipe; each finished step is saved and measured, so that a killed run can be continued."""

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
    """A model during a run, with its exported files.

    Args:
        model: in eval mode.
        files: its exported files, if this process has exported it already.
    """

    model: nn.Module
    files: Files | None = None

    def exported(self, task: Task, codecs: Sequence[Codec] = ()) -> Files:
        """The exported files; `codecs` are user-defined codecs, tried in addition to the built-in ones."""
        return self.files or exported(self.model, task, codecs)


def walk(
    steps: Sequence[Step], start: Reached, task: Task, run: Run, *, dense: nn.Module
) -> tuple[Reached, nn.Module, list[StepResult]]:
    """Run steps one after the other, or continue after the last step that a killed run finished.

    If a callback returns `Stop` after a step, the remaining steps are not run; the stop is recorded as a decision of the run.

    Args:
        steps: of a recipe.
        start: model before the first step.
        task: with its teacher.
        run: each step uses its subfolder `steps/<k>-<step>`.
        dense: the dense module from which `start` was made.

    Returns:
        The final model, the dense module from which it was made, and the measurements after each step.
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
    """Do the work of a step, unless an earlier process has finished it, and load its result from the folder of the run.

    The next step always gets the model that was saved and loaded, so that a continued run gives the same result as one that
    was not interrupted. `profile.json` is written last, and marks the step as finished.

    Args:
        name: of the step, for events.
        run: restricted to the subfolder of the step.
        dense: the dense module from which the result is made.
        task: for the measurements.
        work: returns the result of the step.

    Returns:
        The result, and its measurements on the validation samples.
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
    (run.folder / "checkpoint.safetensors").unlink(missing_ok=True)  # also if a killed process did not get here
    data = files.read_json(done)
    return Reached(model, shipped), StepResult(name, Profile.from_data(data["profile"]), data["seconds"])


def codecs_of(run: Run) -> list[Codec]:
    """The user-defined codecs of a run."""
    return codecs_named(run.journal.document.get("artifact", {}).get("codecs", ()))


def _tell(run: Run, name: str, profile: Profile, seconds: float) -> None:
    """Record the measurements of a step; if a callback returns `Stop`, record that the remaining steps are not run."""
    stop = run.event("profile", step=name, profile=profile.to_data(), seconds=round(seconds, 3))
    if stop is not None:
        run.decide("stopped", lambda: stop.why)
