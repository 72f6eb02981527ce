"""Run the steps of a recipe; each finished step is saved and measured, so that a killed run can be continued.

What an earlier process left is used only if it is whole and was made from the same model: `profile.json` names the digest of
the model in its folder, and those of the model before it and of its teacher. Otherwise the step is made again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from mirabelle import artifact
from mirabelle.artifact.folder import load_with_digest
from mirabelle.artifact.mira import pack
from mirabelle.codecs.codec import Codec, codecs_named
from mirabelle.errors import UserError
from mirabelle.inspection.measure import Files, measure, onnx_file
from mirabelle.job.never_slower import Form, Guard, form_of, origin_after
from mirabelle.model.architecture import architecture_of
from mirabelle.model.state import fingerprint, same_tensors
from mirabelle.model.ties import lost_ties
from mirabelle.run import files
from mirabelle.run.journal import read_events
from mirabelle.run.run import Run
from mirabelle.step import ReplacesModel, Step, folder_of, use_of
from mirabelle.task.goal import Goal
from mirabelle.task.profile import Profile, StepResult
from mirabelle.task.task import Task
from mirabelle.training.checkpoint import checkpoints_in, remove_checkpoints, seconds_in

_PROFILE = "profile.json"


@dataclass
class Reached:
    """A model during a run, with its exported files.

    Args:
        model: in eval mode.
        digest: of the model: its fingerprint, or that of the files from which it was loaded.
        files: its exported files, if this process has exported it already; `exported` keeps them here.
        onnx: its ONNX file alone, if only that has been needed so far.
        loaded: whether `digest` is that of files.
    """

    model: nn.Module
    digest: str
    files: Files | None = None
    onnx: bytes = b""
    loaded: bool = True

    @staticmethod
    def given(model: nn.Module, known: str = "") -> Reached:
        """A model with which a run begins; `known` is its fingerprint, if it is known."""
        return Reached(model, known or fingerprint(model), loaded=False)

    def fingerprint_of(self, other: nn.Module) -> str:
        """The fingerprint of a model, which may be this one."""
        return self.digest if other is self.model and not self.loaded else fingerprint(other)

    def exported(self, task: Task, codecs: Sequence[Codec] = ()) -> Files:
        """The exported files; `codecs` are user-defined codecs, tried in addition to the built-in ones."""
        if self.files is None:
            onnx = self.exported_to_onnx(task)
            self.files, self.onnx = Files(onnx, pack(onnx, codecs)), b""
        return self.files

    def exported_to_onnx(self, task: Task) -> bytes:
        """The exported ONNX file, without packing it."""
        if self.files is not None:
            return self.files.onnx
        self.onnx = self.onnx or onnx_file(self.model, task)
        return self.onnx

    def form(self, task: Task) -> Form:
        """The model with its ONNX file, exported when it is first needed."""
        return Form(self.model, lambda: self.exported_to_onnx(task))


def walk(
    steps: Sequence[Step], start: Reached, task: Task, run: Run, *, dense: nn.Module, goal: Goal | None = None
) -> tuple[Reached, nn.Module, list[StepResult]]:
    """Run steps one after the other, or continue after the last step that a killed run finished.

    If a callback returns `Stop` after a step, the remaining steps are not run; the stop is recorded as a decision of the run.

    Args:
        steps: of a recipe.
        start: model before the first step.
        task: with its teacher.
        run: each step uses its subfolder `steps/<k>-<step>`.
        dense: the dense module from which `start` was made.
        goal: what makes the model slower is undone, as far as this goal does not allow it; None keeps all.

    Returns:
        The final model, the dense module from which it was made, and the measurements after each step.
    """
    trail, reached = [], start
    before = start.form(task)
    guard = None if goal is None else Guard(goal, task, before)
    teacher = None if task.teacher is None else start.fingerprint_of(task.teacher)
    for position, step in enumerate(steps, start=1):
        name = use_of(step)
        place = run.within(folder_of(position, step))
        made_from = {"model": reached.digest, "teacher": teacher}
        make = partial(_done, model=reached.model, task=task, run=place)
        work = partial(_unguarded, make, step, task) if guard is None else partial(guard.kept, step, before, place, make)
        origin = partial(origin_after, step, dense, place)
        reached, entry = run_or_resume(name, place, origin, task, work, made_from=made_from)
        trail.append(entry)
        dense, before = origin(), reached.form(task)
        if place.decided("stopped") is not None:
            break
    return reached, dense, trail


def _done(step: Step, model: nn.Module, task: Task, run: Run) -> nn.Module:
    """The result of a step; tensors that were one before it and are several now are named."""
    result = step(model, task, run)
    for names in () if isinstance(step, ReplacesModel) else lost_ties(model, result):
        run.event("warning", text=f"{' and '.join(names)} were one tensor, and are stored separately from now on")
    return result


def _unguarded(make: Callable[[Step], nn.Module], step: Step, task: Task) -> Form:
    return form_of(make(step), task)


def run_or_resume(
    name: str,
    run: Run,
    dense: Callable[[], nn.Module],
    task: Task,
    work: Callable[[], Form],
    *,
    made_from: Mapping[str, str | None],
) -> tuple[Reached, StepResult]:
    """Do the work of a step, unless an earlier process has finished it, and load its result from the folder of the run.

    The next step always gets the model that was saved and loaded, so that a continued run gives the same result as one that
    was not interrupted. `profile.json` is written last, and marks the step as finished.

    Args:
        name: of the step, for events.
        run: restricted to the subfolder of the step.
        dense: gives the dense module from which the result is made, once the work is done.
        task: for the measurements.
        work: returns the result of the step.
        made_from: digests of the models on which the result depends.

    Returns:
        The result, and its measurements on the validation samples.
    """
    finished = _finished(name, run, dense, made_from)
    if finished is None:
        (run.folder / _PROFILE).unlink(missing_ok=True)
        before, begin = _seconds_of_checkpoint(run, made_from), time.monotonic()
        run.event("begin", step=name, made_from=made_from)
        made = work()
        run.working("saving and loading")
        artifact.save(made.model, run.folder)
        model, digest = load_with_digest(dense(), run.folder)
        reached = Reached(model, digest or "", onnx=_onnx_of(made, model))
        del made
        seconds = before + time.monotonic() - begin
        run.working("export to ONNX and packing")
        shipped = reached.exported(task, codecs_of(run))
        run.working("measurements")
        profile, _ = measure(model, task, task.validation, shipped)
        _tell(run, name, profile, seconds)
        content = {"profile": profile.to_data(), "seconds": seconds, "model": digest, "made_from": made_from}
        files.write_json(run.folder / _PROFILE, {**content, "events": run.journal.count})
        entry = StepResult(name, Profile.from_data(profile.to_data()), seconds)
        finished = reached, entry
    remove_checkpoints(run.folder)  # also if a killed process did not get here
    return finished


def _onnx_of(made: Form, loaded: nn.Module) -> bytes:
    """The ONNX file of a model that was saved and loaded, if that before has been exported and both are the same."""
    same = made.known and architecture_of(made.model) == architecture_of(loaded) and same_tensors(made.model, loaded)
    return made.known if same else b""


class _UnusableError(Exception):
    """Raised if what an earlier process has made of a step cannot be used; the message is the reason."""


def _finished(
    name: str, run: Run, dense: Callable[[], nn.Module], made_from: Mapping[str, str | None]
) -> tuple[Reached, StepResult] | None:
    """What an earlier process has made of a step; None if it is not finished, damaged, or made from another model."""
    if not (run.folder / _PROFILE).is_file():
        return None
    try:
        return _read_back(name, run, dense, made_from)
    except _UnusableError as reason:
        run.event("warning", text=f"{reason}; this step is made again")
        return None


def _read_back(
    name: str, run: Run, dense: Callable[[], nn.Module], made_from: Mapping[str, str | None]
) -> tuple[Reached, StepResult]:
    path = run.folder / _PROFILE
    try:
        data = files.read_json(path)
        entry = StepResult(name, Profile.from_data(data["profile"]), float(data["seconds"]))
        model, digest = load_with_digest(dense(), run.folder)
    except UserError as error:
        if error.code not in ("E130", "E141"):
            raise
        raise _UnusableError(error.message) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _UnusableError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if "model" not in data:
        text = f"{run.name} was written by an earlier version, without digests: whether it is whole could not be checked"
        run.event("warning", text=text)
    elif data["model"] != digest:
        raise _UnusableError(f"the model in {run.folder} is not the one that was measured there")
    elif data["made_from"] != made_from:
        raise _UnusableError(f"{run.folder} was made from another model or by another teacher than this run has now")
    elif data["events"] > run.journal.count:
        run.event("warning", text="events.jsonl has lost lines: learning curves may lack epochs")
    return Reached(model, digest or fingerprint(model)), entry


def _seconds_of_checkpoint(run: Run, made_from: Mapping[str, str | None]) -> float:
    """The seconds that the trainings of an unfinished step have taken; checkpoints that cannot be used are removed."""
    paths = checkpoints_in(run.folder)
    try:
        seconds = seconds_in(run.folder)
    except UserError as error:
        remove_checkpoints(run.folder)
        run.event("warning", text=f"{error.message}; the training of this step begins anew")
        return 0.0
    if paths:
        begun = [event for event in read_events(run.journal.folder) if event["event"] == "begin"]
        known = next((event.get("made_from") for event in reversed(begun) if event.get("where") == run.name), None)
        if known is not None and known != made_from:
            remove_checkpoints(run.folder)
            run.event("warning", text=f"{paths[0]} is of a training of another model; the training of this step begins anew")
            return 0.0
    return seconds


def codecs_of(run: Run) -> list[Codec]:
    """The user-defined codecs of a run."""
    return codecs_named(run.journal.document.get("artifact", {}).get("codecs", ()))


def _tell(run: Run, name: str, profile: Profile, seconds: float) -> None:
    """Record the measurements of a step; if a callback returns `Stop`, record that the remaining steps are not run."""
    stop = run.event("profile", step=name, profile=profile.to_data(), seconds=round(seconds, 3))
    if stop is not None:
        run.decide("stopped", lambda: stop.why)
