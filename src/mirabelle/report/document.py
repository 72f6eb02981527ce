"""Everything a run has to say, as data: `report.json`, schema 1. Page, card and table are made of this alone."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from mirabelle.errors import UserError
from mirabelle.report.findings import Judgement, Milestone, Outcome, Share, Significance
from mirabelle.report.learning_curves import Curve
from mirabelle.report.verdict import remarks, verdict
from mirabelle.run import files
from mirabelle.task.goal import Shortfall
from mirabelle.task.profile import Profile

if TYPE_CHECKING:
    from mirabelle.inspection import Layer
    from mirabelle.runtime.gates import Gate
    from mirabelle.task.profile import StepResult

SCHEMA = 1
ARTIFACTS = {
    "onnx": "model.onnx",
    "packed": "model.mira",
    "torch": "model.safetensors",
    "architecture": "architecture.json",
    "recipe": "recipe.toml",
    "html": "report.html",
    "card": "README.md",
}


@dataclass(frozen=True)
class Report:
    """All that a run found out; `recipe` holds the decisions, `name` is the task's."""

    start: Profile
    end: Profile
    comparison: Significance
    goal: Judgement
    gates: Mapping[str, Outcome]
    trail: tuple[Milestone, ...]
    layers: tuple[Share, ...]
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    name: str = "model"
    curves: tuple[Curve, ...] = ()

    @staticmethod
    def of(
        *,
        name: str,
        recipe: Mapping[str, Any],
        environment: Mapping[str, Any],
        start: Profile,
        end: Profile,
        comparison: Significance,
        shortfalls: Iterable[Shortfall],
        trail: Iterable[StepResult],
        gates: Mapping[str, Gate],
        layers: Iterable[Layer],
        curves: Iterable[Curve],
    ) -> Report:
        """The report of what a run measured."""
        return Report(
            start=start,
            end=end,
            comparison=comparison,
            goal=Judgement(dict(recipe.get("goal", {})), tuple(shortfalls)),
            gates={gate: Outcome(**verdict.to_data()) for gate, verdict in gates.items()},
            trail=tuple(Milestone(entry.step, entry.profile, round(entry.seconds, 3)) for entry in trail),
            layers=tuple(Share(**layer.to_data()) for layer in layers),
            recipe=dict(recipe),
            environment=dict(environment),
            name=name,
            curves=tuple(curves),
        )

    @property
    def verdict(self) -> str:
        return verdict(self.start, self.end, self.comparison)

    @property
    def remarks(self) -> list[str]:
        return remarks(self.start, self.end, self.comparison, self.goal.shortfalls, self.gates)

    def to_data(self) -> dict[str, Any]:
        """What report.json holds: the fields, and what follows from them for those who read no Python."""
        plain = {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}
        plain["comparison"]["different"] = self.comparison.different
        plain["goal"] = {
            "asked": dict(self.goal.asked),
            "met": self.goal.met,
            "shortfalls": [shortfall.to_data() for shortfall in self.goal.shortfalls],
        }
        said = {"schema": SCHEMA, "name": self.name, "verdict": self.verdict, "remarks": self.remarks}
        return {**said, **plain, "artifacts": dict(ARTIFACTS)}

    @staticmethod
    def from_data(data: Mapping[str, Any], source: str = "report.json") -> Report:
        """The report whose data this is.

        Raises:
            UserError: E141 when it is no report's data, E142 when a newer Mirabelle wrote it.
        """
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if isinstance(schema, int) and schema > SCHEMA:
            message = f"{source} has schema {schema}, which is newer than {SCHEMA}"
            raise UserError("E142", message, "read it with a newer Mirabelle")
        try:
            return TypeAdapter(Report).validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the document"
            message = f"{source} is damaged at {place}: {first['msg']}"
            raise UserError("E141", message, "restore the file, or do the run again in a new folder") from None


def read_report(folder: Path) -> Report:
    """The report of a run that has ended.

    Raises:
        UserError: E141 when report.json is damaged, E142 when a newer Mirabelle wrote it.
    """
    path = folder / "report.json"
    return Report.from_data(files.read_json(path), str(path))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value  # JSON knows no infinity
