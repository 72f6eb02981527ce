"""The machine and versions of every process that works on a run, kept in its journal."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from mirabelle.errors import UserError
from mirabelle.job.where import DEVICE
from mirabelle.model.device import CPU, device_of_job, title_of
from mirabelle.report.processes import different_conditions
from mirabelle.run import files
from mirabelle.run.environment import environment
from mirabelle.run.journal import read_events
from mirabelle.run.run import Run

_FIRST = "environment.json"  # of the process that started the run
_OF_EVENTS = ("time", "event", "where")


def record_process(run: Run, model: nn.Module) -> None:
    """Record the machine and versions of this process; if they are not those of the process before, record a warning, too.

    Args:
        run: is opened.
        model: the packages of its modules count.
    """
    before = processes_of(run.folder)
    device = device_of_job(model)
    if device != CPU:
        run.decide(DEVICE, lambda: str(device))
    here = environment((type(module).__module__ for module in model.modules()), title_of(device))
    run.event("process", **here)
    if not before:
        before = [here]
    try:
        files.read_json(run.folder / _FIRST)
    except UserError:  # missing or damaged
        files.write_json(run.folder / _FIRST, before[0])
    for sentence in different_conditions([before[-1], here]):
        run.event("warning", text=sentence)


def processes_of(folder: Path) -> list[dict[str, Any]]:
    """Machine and versions of each process that worked on the run in a folder, equal ones once, in their order."""
    found = []
    with suppress(UserError):  # missing or damaged; the journal has it, too
        found.append(files.read_json(folder / _FIRST))
    processes = [event for event in read_events(folder) if event["event"] == "process"]
    found += [{name: value for name, value in event.items() if name not in _OF_EVENTS} for event in processes]
    return [one for k, one in enumerate(found) if one not in found[:k]]
