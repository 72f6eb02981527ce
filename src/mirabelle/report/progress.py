"""How far a run has come that has not ended: read from what it left in its folder, whether it goes on or was killed."""

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
from mirabelle.report.learning_curves import read_events

_LAST = "gates and measurements"


@dataclass(frozen=True)
class RunProgress:
    """Steps done with what they gave, the names of those to come, and the present training's last epoch, if it has one.

    `seconds_left` is of the present training, as it was estimated when that epoch ended.
    """

    done: tuple[Milestone, ...]
    ahead: tuple[str, ...]
    epoch: int | None = None
    epochs: int | None = None
    metric: float | None = None
    seconds_left: float | None = None

    @property
    def now(self) -> str:
        """The step that is under way, or the next."""
        return self.ahead[0] if self.ahead else _LAST

    def to_data(self) -> dict[str, Any]:
        return {"ended": False, "now": self.now, **dataclasses.asdict(self)}


def progress_of(folder: Path) -> RunProgress:
    """How far the run in `folder` has come.

    Raises:
        UserError: E130 when the folder holds no run, E141 when what it holds is damaged.
    """
    path = folder / "recipe.toml"
    if not path.is_file():
        what = "holds no run" if folder.is_dir() else "is no folder"
        raise UserError("E130", f"{folder} {what}", "name the folder that `mirabelle run` was given as --out")
    try:
        names = _places(tomllib.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError("E141", f"{path} is no recipe of a run: {error}", "restore the file, or start a new run") from error
    ended = {place: _milestone(name, folder / place / "profile.json") for place, name in names.items()}
    ahead = {place: names[place] for place, entry in ended.items() if entry is None}
    done = tuple(entry for entry in ended.values() if entry is not None)
    return RunProgress(done, tuple(ahead.values()), **_last_epoch(folder, next(iter(ahead), "")))


def _places(recipe: Mapping[str, Any]) -> dict[str, str]:
    """The folders that a run of this recipe makes, in order, with the name of each step."""
    first = [name for name in ("baseline", "teacher") if "train" in recipe.get(name, {})]
    steps = enumerate((table["use"] for table in recipe["step"]), start=1)
    return {f"steps/0-{name}": name for name in first} | {f"steps/{number}-{use.lower()}": use for number, use in steps}


def _milestone(name: str, path: Path) -> Milestone | None:
    if not path.is_file():
        return None
    try:
        data = {"step": name, **json.loads(path.read_bytes())}
        return TypeAdapter(Milestone).validate_json(json.dumps(data), strict=True)
    except (OSError, ValueError, TypeError, ValidationError) as error:
        message = f"{path} is damaged: {str(error).splitlines()[0]}"
        raise UserError("E141", message, "remove its folder, and the same command does this step again") from error


def _last_epoch(folder: Path, place: str) -> dict[str, Any]:
    """The newest epoch of the training in this place, as fields of `RunProgress`."""
    events = [event for event in read_events(folder) if event["event"] == "epoch" and event.get("where") == place]
    return {name: events[-1].get(name) for name in ("epoch", "epochs", "metric", "seconds_left")} if events else {}
