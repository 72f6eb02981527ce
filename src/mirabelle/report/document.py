"""The results of a run as data: `report.json`, schema 1. The HTML page, the model card and the table contain nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from mirabelle import records
from mirabelle.errors import UserError
from mirabelle.report.findings import ConstantAnswer, Judgement, Left, Milestone, Outcome, Share, Significance, StepSpeed
from mirabelle.report.learning_curves import Curve
from mirabelle.report.processes import different_conditions
from mirabelle.report.verdict import certainty, remarks, verdict
from mirabelle.run import files
from mirabelle.runtime.contest import Contest
from mirabelle.task.goal import Goal, Shortfall
from mirabelle.task.profile import Profile

if TYPE_CHECKING:
    from mirabelle.inspection import Layer
    from mirabelle.runtime.gates import Gate
    from mirabelle.task.profile import StepResult

SCHEMA = 1
ALLOW_SLOWER = '`latency = "any"` under [goal]'
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
    """The results of a run.

    Args:
        start: profile of the dense model, measured on the test split.
        end: profile of the compressed model, measured on the test split.
        comparison: tests of the difference between `start` and `end` on the same samples.
        goal: the goal of the recipe and the parts of it that are not met.
        gates: name of a gate -> its outcome.
        trail: the model's profile after each step, measured on the validation split.
        layers: the layers of the exported file.
        recipe: the resolved recipe, including every decision made during the run.
        environment: machine and versions with which the run was started.
        name: of the task.
        curves: the learning curve of each training.
        constant: the best constant answer beside both models; None in reports of earlier versions.
        left: what each step left as it is, and why.
        processes: machine and versions of each process that worked on the run, equal ones once, in their order.
        digests: name of each file that ships -> digest of its bytes.
        notes: sentences on data that were left out, cut or changed, and on weights that no file contains.
        about: what is known of the model without measuring it: "pipeline_tag", "license", "base_model" and the like.
        speeds: what each step that changes the operators does to the latency, and what of it was undone.
        contest: both models in every runtime; None in reports of earlier versions.
    """

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
    constant: ConstantAnswer | None = None
    left: tuple[Left, ...] = ()
    processes: tuple[Mapping[str, Any], ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)
    speeds: tuple[StepSpeed, ...] = ()
    contest: Contest | None = None

    @staticmethod
    def of(
        *,
        name: str,
        recipe: Mapping[str, Any],
        processes: Sequence[Mapping[str, Any]],
        start: Profile,
        end: Profile,
        comparison: Significance,
        shortfalls: Iterable[Shortfall],
        trail: Iterable[StepResult],
        gates: Mapping[str, Gate],
        layers: Iterable[Layer],
        curves: Iterable[Curve],
        constant: ConstantAnswer | None = None,
        left: Iterable[Left] = (),
        digests: Mapping[str, str],
        notes: Iterable[str] = (),
        about: Mapping[str, str] | None = None,
        speeds: Iterable[StepSpeed] = (),
        contest: Contest | None = None,
    ) -> Report:
        """Build a report from the measurements of a run."""
        return Report(
            start=start,
            end=end,
            comparison=comparison,
            goal=Judgement(dict(recipe.get("goal", {})), tuple(shortfalls)),
            gates={gate: Outcome(**verdict.to_data()) for gate, verdict in gates.items()},
            trail=tuple(Milestone(entry.step, entry.profile, round(entry.seconds, 3)) for entry in trail),
            layers=tuple(Share(**layer.to_data()) for layer in layers),
            recipe=dict(recipe),
            environment=dict(processes[0]),
            name=name,
            curves=tuple(curves),
            constant=constant,
            left=tuple(left),
            processes=tuple(dict(process) for process in processes),
            digests=dict(digests),
            notes=tuple(notes),
            about=dict(about or {}),
            speeds=tuple(speeds),
            contest=contest,
        )

    @property
    def verdict(self) -> str:
        return verdict(self.start, self.end, self.comparison, self.constant)

    @property
    def remarks(self) -> list[str]:
        found = remarks(self.start, self.end, self.comparison, self.goal.shortfalls, self.gates, constant=self.constant)
        return [*found, *self._kept_from_size(), *self.certainty, *different_conditions(self.processes), *self.notes]

    @property
    def certainty(self) -> list[str]:
        """What the measurements cannot tell about the goal."""
        asked = {name: value for name, value in self.goal.asked.items() if name in Goal.__dataclass_fields__}
        return certainty(self.start, self.end, self.comparison, records.build(Goal, asked, "goal"))

    def _kept_from_size(self) -> list[str]:
        """A sentence if a goal of bytes is missed while layers were left in floating point for the sake of speed."""
        missed = any(shortfall.name in ("size", "onnx_size") for shortfall in self.goal.shortfalls)
        undone = [one.step for one in self.speeds if one.undone or one.returned]
        if not missed or not undone:
            return []
        kept = f"Not all of {' and '.join(undone)} was kept, since it would have made the model slower"
        return [f"{kept}. Where bytes alone count, {ALLOW_SLOWER} keeps it; quantize.Weights costs no time."]

    @property
    def goal_in_words(self) -> str:
        """Whether the goal is met; that a limit relative to a start that has learned nothing is kept is no success."""
        idle = self.constant is not None and not self.constant.start_learned and self.goal.asked.get("max_drop") is not None
        if self.goal.met and idle:
            return "Goal met in numbers only, as its max_drop is relative to a start that has learned nothing"
        return "Goal met" if self.goal.met else "Goal not met"

    def to_data(self) -> dict[str, Any]:
        """The content of report.json: the fields, the verdict and remarks derived from them, and the names of the files."""
        fields = {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}
        fields["comparison"]["different"] = self.comparison.different
        fields["goal"] = {
            "asked": dict(self.goal.asked),
            "met": self.goal.met,
            "shortfalls": [shortfall.to_data() for shortfall in self.goal.shortfalls],
        }
        header = {"schema": SCHEMA, "name": self.name, "verdict": self.verdict, "remarks": self.remarks}
        return {**header, **fields, "artifacts": dict(ARTIFACTS)}

    @staticmethod
    def from_data(data: Mapping[str, Any], source: str = "report.json") -> Report:
        """The report with this content.

        Args:
            data: as returned by `to_data`.
            source: name of the file, for error messages.

        Raises:
            UserError: E141 if the data are not those of a report; E142 if a newer version of Mirabelle wrote them.
        """
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if isinstance(schema, int) and schema > SCHEMA:
            message = f"{source} has schema {schema}, which is newer than {SCHEMA}"
            raise UserError("E142", message, "upgrade Mirabelle to read it")
        try:
            return TypeAdapter(Report).validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the document"
            message = f"{source} is damaged at {place}: {first['msg']}"
            raise UserError("E141", message, "restore the file, or repeat the run in a new folder") from None


def read_report(folder: Path) -> Report:
    """Read the report of a finished run.

    Raises:
        UserError: E141 if report.json is damaged; E142 if a newer version of Mirabelle wrote it.
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
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no infinity or NaN
