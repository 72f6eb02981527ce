"""The progress of an unfinished run, running or interrupted, read from the files in its folder."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mirabelle.errors import UserError
from mirabelle.report.findings import Milestone
from mirabelle.run import files
from mirabelle.run.journal import read_events

_LAST = "gates and measurements"


@dataclass(frozen=True)
class RunProgress:
    """The progress of an unfinished run.

    Args:
        done: the completed steps with their results.
        ahead: names of the remaining steps; the first may be running.
        epoch: last completed epoch of the current training; None before the first.
        epochs: number of epochs of the current training.
        metric: validation metric after `epoch`.
        seconds_left: estimated remaining time of the current training, as of the end of `epoch`.
    """

    done: tuple[Milestone, ...]
    ahead: tuple[str, ...]
    epoch: int | None = None
    epochs: int | None = None
    metric: float | None = None
    seconds_left: float | None = None

    @property
    def now(self) -> str:
        """Name of the step that is running or comes next."""
        return self.ahead[0] if self.ahead else _LAST

    def to_data(self) -> dict[str, Any]:
        return {"ended": False, "now": self.now, **dataclasses.asdict(self)}


def progress_of(folder: Path) -> RunProgress:
    """Read the progress of the run in `folder`.

    Raises:
        UserError: E130 if the folder contains no run; E141 if a file of the run is damaged.
    """
    path = folder / "recipe.toml"
    if not path.is_file():
        problem = "contains no run" if folder.is_dir() else "is not a folder"
        raise UserError("E130", f"{folder} {problem}", "give the folder that was passed to `mirabelle run` as --out")
    try:
        names = _step_folders(tomllib.loads(files.read_text(path)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            "E141", f"{path} is not the recipe of a run: {error}", "restore the file, or start a new run"
        ) from error
    ended = {place: _milestone(name, folder / place / "profile.json") for place, name in names.items()}
    ahead = {place: names[place] for place, entry in ended.items() if entry is None}
    done = tuple(entry for entry in ended.values() if entry is not None)
    return RunProgress(done, tuple(ahead.values()), **_last_epoch(folder, next(iter(ahead), "")))


def _step_folders(recipe: Mapping[str, Any]) -> dict[str, str]:
    """The folders that a run of this recipe creates, in order, each with the name of its step."""
    first = [name for name in ("baseline", "teacher") if "train" in recipe.get(name, {})]
    steps = enumerate((table["use"] for table in recipe["step"]), start=1)
    return {f"steps/0-{name}": name for name in first} | {f"steps/{number}-{use.lower()}": use for number, use in steps}


def _milestone(name: str, path: Path) -> Milestone | None:
    if not path.is_file():
        return None
    try:
        data = {"step": name, **files.read_json(path)}
        return TypeAdapter(Milestone).validate_json(json.dumps(data), strict=True)
    except (OSError, ValueError, TypeError, ValidationError) as error:
        message = f"{path} is damaged: {str(error).splitlines()[0]}"
        raise UserError("E141", message, "delete its folder and run the same command again to repeat this step") from error


def _last_epoch(folder: Path, place: str) -> dict[str, Any]:
    """The last epoch of the training in the folder `place`, as fields of `RunProgress`."""
    events = [event for event in read_events(folder) if event["event"] == "epoch" and event.get("where") == place]
    return {name: events[-1].get(name) for name in ("epoch", "epochs", "metric", "seconds_left")} if events else {}
