"""Read what automatic compression needs from a recipe file: model, data, teacher and goal. Its steps are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mirabelle import records
from mirabelle.recipe.file import KEYS, SOURCES, SourcesFile, opened
from mirabelle.recipe.named_sources import check_sources
from mirabelle.records.trust import names_of
from mirabelle.task.goal import Goal

_READ = (*SOURCES, "goal")


@dataclass(frozen=True, kw_only=True)
class GoalFile(SourcesFile):
    """A file with a model, data and a goal that has been read and is valid."""

    goal: Goal

    @property
    def _keys(self) -> tuple[str, ...]:
        return _READ


def read_goal_file(path: Path, settings: Sequence[str] = (), *, data_folder: Path | None = None) -> GoalFile:
    """Read and check a recipe file but for its steps, which it need not have.

    Args:
        path: of the file.
        settings: values that replace those of the file, such as 'goal.latency="50%"'.
        data_folder: folder of "data:PATH" in names of models and weights.

    Raises:
        UserError: as `read_recipe`.
    """
    read = opened(path, settings, (*KEYS, "fingerprint", "decisions"), data_folder)
    with names_of(path.parent, trust=True):
        parts = read.sources(path)
        goal = read.part(lambda tables: records.build(Goal, tables.get("goal", {}), "goal"), "goal")
    check_sources({key: read.data[key] for key in _READ if key in read.data}, (), read.mistakes)
    read.end()
    assert goal is not None, "what could not be read is a mistake"
    return GoalFile(goal=goal, **parts)
