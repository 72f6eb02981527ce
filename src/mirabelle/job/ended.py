"""Read back a run that has ended; its files are used only if they are whole."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from mirabelle import artifact
from mirabelle.artifact.folder import digest_of_model
from mirabelle.errors import UserError
from mirabelle.job.digests import faults_of_files, faults_of_pages
from mirabelle.job.dry_run import JobPlan
from mirabelle.job.never_slower import origin_after
from mirabelle.job.result import Result, checked, tell_end
from mirabelle.model.state import tensors_of_module
from mirabelle.report import Report, read_events, read_report, write_pages
from mirabelle.run import files
from mirabelle.run.run import Run, same_run
from mirabelle.runtime.gates import Gate
from mirabelle.step import folder_of


def result_of_ended(plan: JobPlan, run: Run) -> Result | None:
    """The result of a run that has ended and whose files are whole.

    None if it has not ended, if files are missing or damaged, which is recorded as a warning, or if an earlier version wrote
    it, without digests. A page that is damaged or was changed is only told of: it can be made again from `report.json`.
    """
    if not (run.folder / "report.json").is_file():
        return None
    try:
        report = read_report(run.folder)
        faults = faults_of_files(run.folder, report.digests)
        if not same_run(report.recipe, run.journal.document):
            faults.append("report.json is that of another run")
        model = artifact.load(_origin(plan, run), run.folder) if report.digests and not faults else None
    except UserError as error:
        if error.code not in ("E130", "E141"):
            raise
        faults, model = [error.message], None
    if faults:
        run.event("warning", text=f"{'; '.join(faults)}; the files of the result are written again")
    if model is None:
        return None
    for fault in faults_of_pages(run.folder):
        if fault.endswith("missing"):
            write_pages(report, run.folder)
            break
        run.event("warning", text=f"{fault}; `mirabelle report {run.folder}` writes it again")
    return _read_result(model, report, run)


def result_without_digests(end: nn.Module, run: Run) -> Result | None:
    """The result of a run that an earlier version ended, if its files agree with each other; None if they are to be written.

    Args:
        end: the model of the last step.
        run: the run.

    Raises:
        UserError: E141 if the model in the folder is not that of the last step, and nothing tells which one is damaged.
    """
    try:
        if not (run.folder / "report.json").is_file() or (report := read_report(run.folder)).digests:
            return None
        tensors = files.read_tensors(run.folder / "model.safetensors")[0]
        same = artifact.unpack((run.folder / "model.mira").read_bytes()) == (run.folder / "model.onnx").read_bytes()
    except (UserError, OSError):
        return None
    expected = tensors_of_module(end)
    if tensors.keys() != expected.keys() or not all(torch.equal(tensors[name], expected[name]) for name in tensors):
        last = _last_step(run)
        if last is not None and digest_of_model(last) is None:
            message = f"model.safetensors in {run.folder} and in {last} differ, and an earlier version wrote no digests"
            raise UserError("E141", message, "restore the damaged one, or start a new run in another folder")
        return None
    return _read_result(end, report, run) if same else None


def _last_step(run: Run) -> Path | None:
    """The folder of the last step of the run that has a model."""
    found = [path.parent for path in (run.folder / "steps").glob("*/model.safetensors")]
    return max(found, key=lambda path: int(path.name.partition("-")[0])) if found else None


def _origin(plan: JobPlan, run: Run) -> nn.Module:
    """The dense module from which the model of an ended run was made."""
    dense = plan.model
    if any(run.within(f"steps/0-{name}").decided("stopped") is not None for name in ("baseline", "teacher")):
        return dense
    for position, step in enumerate(plan.recipe.steps, start=1):
        place = run.within(folder_of(position, step))
        dense = origin_after(step, dense, place)
        if place.decided("stopped") is not None:
            break
    return dense


def _read_result(end: nn.Module, report: Report, run: Run) -> Result:
    """The result as its report tells it; if the run was killed before its last event, the event is recorded now."""
    if not any(event.get("event") == "end" for event in read_events(run.folder)):
        tell_end(run, report.goal.shortfalls)
    run.event("ended before")
    gates = {name: Gate.from_data(asdict(gate)) for name, gate in report.gates.items()}
    return checked(Result(end, report.end, report.start, report.goal.shortfalls, gates, run.folder, report.constant))
