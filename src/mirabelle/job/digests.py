"""Check that every file of a run has the digest with which it was written, and belongs where it is."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirabelle.artifact.folder import digest_of_model
from mirabelle.errors import UserError
from mirabelle.report import read_report
from mirabelle.report.page import PAGES
from mirabelle.run import files
from mirabelle.run.journal import damaged_lines, read_events
from mirabelle.run.run import same_run
from mirabelle.step import Step

SHIPPED = ("model.onnx", "model.mira", "model.safetensors", "architecture.json")


def digests_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The digests of files, and of folders of files, in the folder of a run."""
    return {name: files.digest_of_file(folder / name) for name in names}


def faults_of_files(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """What is wrong with the files in the folder of a run whose digests its `report.json` names, in words."""
    missing = [name for name in digests if not (folder / name).exists()]
    now = digests_of(folder, [name for name in digests if name not in missing])
    changed = [name for name in now if now[name] != digests[name]]
    return [f"{name} is missing" for name in missing] + [f"{name} is damaged or was changed" for name in changed]


def faults_of_pages(folder: Path) -> list[str]:
    """What is wrong with the pages that are made from `report.json`, in words."""
    faults = []
    for name in PAGES:
        try:
            files.read_text(folder / name)
        except UserError:
            faults.append(f"{name} is damaged or was changed" if (folder / name).is_file() else f"{name} is missing")
    return faults


def faults_of_run(folder: Path, steps: Sequence[tuple[Path, Step]]) -> tuple[list[str], list[str]]:
    """Check all files of a run.

    Args:
        folder: of a run that has ended; its `recipe.toml` is whole.
        steps: those that were run, with their folders.

    Returns:
        What is wrong, in words; and the names of the files, or steps, for which an earlier version wrote no digests.
    """
    recipe = tomllib.loads(files.read_text(folder / "recipe.toml"))
    faults, unknown = _of_report(folder, recipe)
    expected = recipe.get("fingerprint", {})
    before, least = expected.get("model"), 0
    named = [(folder / "steps/0-baseline", before), (folder / "steps/0-teacher", expected.get("teacher"))]
    for place, given in [pair for pair in named if pair[0].is_dir()]:
        made = _of_step(place, given)
        faults += made.faults
        unknown += made.unknown
        before, least = made.digest if place.name == "0-baseline" else before, max(least, made.events)
    for place, _ in steps:
        if not place.is_dir():  # tidied away
            before = None
            continue
        made = _of_step(place, before)
        faults += made.faults
        unknown += made.unknown
        before, least = made.digest, max(least, made.events)
    return faults + _of_journal(folder, least) + list(_of_caches(folder)), unknown


def _of_report(folder: Path, recipe: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What is wrong with report.json and the files that it names; and whether it names none."""
    try:
        report = read_report(folder)
    except UserError as error:
        return [error.message], []
    if not report.digests:
        return [], ["report.json"]
    faults = faults_of_files(folder, report.digests) + faults_of_pages(folder)
    if not same_run(report.recipe, recipe):
        faults.append("report.json is that of another run than recipe.toml")
    try:
        files.read_json(folder / "environment.json")
    except UserError as error:
        faults.append(error.message)
    return faults, []


@dataclass(frozen=True)
class _Step:
    """What was found in the folder of a step: its model's digest, what is wrong, what is unknown, events written until then."""

    digest: str | None = None
    faults: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    events: int = 0


def _of_step(place: Path, before: str | None) -> _Step:
    """Check the files of a step.

    Args:
        place: its folder.
        before: digest of the model from which it should have been made; None if it is not known.
    """
    name = f"steps/{place.name}"
    try:
        data, made = files.read_json(place / "profile.json"), digest_of_model(place)
    except UserError as error:
        return _Step(faults=(error.message,))
    if "model" not in data:
        return _Step(made, unknown=(name,))
    if data["model"] != made:
        return _Step(made, (f"the model in {name} is not the one that was measured there",))
    if before is not None and data["made_from"]["model"] != before:
        return _Step(made, (f"{name} was made from another model than the one before it",))
    return _Step(made, events=data["events"])


def _of_journal(folder: Path, least: int) -> list[str]:
    """What is wrong with the events of a run that has ended; `least` is the number of events that were seen by a step."""
    events = read_events(folder)
    if lines := damaged_lines(folder):
        return [f"{lines} lines of events.jsonl are damaged"]
    if least and (len(events) < least or not any(event["event"] == "end" for event in events)):
        return ["events.jsonl has lost lines"]
    return []


def _of_caches(folder: Path) -> Iterator[str]:
    """What is wrong with the kept outputs of teachers."""
    for path in sorted((folder / "teacher").glob("*.safetensors")):
        try:
            files.read_tensors(path)
        except UserError as error:
            yield error.message
