"""A recipe file (TOML, schema 1) -> everything that `compress` needs. Every mistake in it is found in one reading."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field
from torch import nn

from mirabelle import files, plain
from mirabelle.errors import UserError, UserErrors, did_you_mean
from mirabelle.goal import Goal
from mirabelle.plain import record
from mirabelle.recipe import Recipe
from mirabelle.sources import model_from, task_from
from mirabelle.state import load_tensors
from mirabelle.task import Task
from mirabelle.training import Training

P = TypeVar("P")
_KEYS = ("schema", "seed", "model", "task", "teacher", "baseline", "goal", "step")
_WRITTEN_BY_RUNS = ("fingerprint", "decisions")
_SCHEMA = 1
_PATHS = ("from", "data", "model", "weights")  # keys that may name a file, relative to the recipe


@record
class ModelTable:
    """`[model]`: where a module comes from, and its weights."""

    factory: Annotated[str, Field(alias="from")]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None


@record
class TeacherTable:
    """`[teacher]`: where it comes from, its weights or its training."""

    factory: Annotated[str, Field(alias="from")]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    train: Training | None = None


@record
class TaskTable:
    """`[task]`: which data."""

    data: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@record
class BaselineTable:
    """`[baseline]`: how the start is trained, or where its weights lie."""

    train: Training | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if (self.train is None) == (self.weights is None):
            raise UserError("E111", "[baseline] needs `train` or `weights`, one of them", "train = { epochs = 10 }, say")


@dataclass(frozen=True)
class RecipeFile:
    """A recipe file that has been read and found well-formed."""

    path: Path
    seed: int
    model: ModelTable
    task: TaskTable
    teacher: TeacherTable | None
    baseline: BaselineTable | None
    goal: Goal
    recipe: Recipe
    decisions: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Against which the paths in the file are read."""
        return self.path.parent

    def build_model(self) -> nn.Module:
        """The model at the start, with the weights the file names.

        Raises:
            UserError: E120, E121 as the factory fails; E130, E140, E141, E143 as the weights do.
        """
        weights = self.model.weights or (self.baseline.weights if self.baseline else None)
        return _built(self.model, weights, self.folder, self.seed)

    def build_teacher(self) -> nn.Module | None:
        return _built(self.teacher, self.teacher.weights, self.folder, self.seed) if self.teacher else None

    def build_task(self, data_folder: Path | None) -> Task:
        return task_from(self.task.data, self.task.arguments, data_folder=data_folder, folder=self.folder)

    def source(self) -> dict[str, Any]:
        """How the file names model, data and teacher, as the resolved recipe keeps it."""
        tables: dict[str, Any] = {"model": _table(self.model), "task": plain.to_data(self.task)}
        if self.teacher is not None:
            tables["teacher"] = _table(self.teacher)
        if self.baseline is not None and self.baseline.weights is not None:
            tables["baseline"] = {"weights": self.baseline.weights}
        return tables


def read_recipe(path: Path) -> RecipeFile:
    """Read a recipe file strictly.

    Raises:
        UserError: E130 no such file, E101 no TOML, and every other mistake at once as `UserErrors`.
    """
    if not path.is_file():
        raise UserError("E130", f"no recipe at {path}", "check the path")
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError("E101", f"{path}: {error}", "mend the TOML") from None
    data = _absolute(data, path.parent.resolve(), key="")
    mistakes: list[UserError] = []

    def part(read: Callable[[], P]) -> P | None:
        try:
            return read()
        except UserErrors as errors:
            mistakes.extend(errors.errors)
        except UserError as error:
            mistakes.append(error)
        return None

    unknown = sorted(set(data) - set(_KEYS) - set(_WRITTEN_BY_RUNS))
    mistakes += [UserError("E102", f'unknown key "{key}"', did_you_mean(key, _KEYS)) for key in unknown]
    part(lambda: _schema(data))
    model = part(lambda: plain.build(ModelTable, _section(data, "model"), "model"))
    task = part(lambda: plain.build(TaskTable, _section(data, "task"), "task"))
    teacher = part(lambda: plain.build(TeacherTable, data["teacher"], "teacher")) if "teacher" in data else None
    baseline = part(lambda: plain.build(BaselineTable, data["baseline"], "baseline")) if "baseline" in data else None
    goal = part(lambda: plain.build(Goal, data.get("goal", {}), "goal"))
    recipe = part(lambda: Recipe.from_data(_section(data, "step")))
    if model is not None and model.weights and baseline is not None and baseline.weights:
        mistakes.append(UserError("E111", "[model] and [baseline] both name weights", "keep one of them"))
    if mistakes or model is None or task is None or goal is None or recipe is None:
        raise UserErrors([mistake.at(str(path)) for mistake in mistakes])
    return RecipeFile(path, int(data.get("seed", 0)), model, task, teacher, baseline, goal, recipe, data.get("decisions", {}))


def _schema(data: Mapping[str, Any]) -> None:
    schema = data.get("schema")
    if schema is None:
        raise UserError("E104", 'missing key "schema"', "write schema = 1 in the first line")
    if not isinstance(schema, int) or schema > _SCHEMA or schema < 1:
        raise UserError(
            "E142", f"schema = {schema!r} is not known; this version reads 1", "upgrade Mirabelle, or write schema = 1"
        )
    seed = data.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError("E103", f'"seed" must be a whole number from 0; got {seed!r}', "write seed = 0")


def _section(data: Mapping[str, Any], name: str) -> Any:
    if name not in data:
        raise UserError("E104", f"missing table [{name}]", f"add [{'[step]' if name == 'step' else name}]")
    return data[name]


def _built(table: ModelTable | TeacherTable, weights: str | None, folder: Path, seed: int) -> nn.Module:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_from(table.factory, table.arguments, folder)
    if weights is not None:
        load_weights(model, folder / weights)
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy the weights of a safetensors file into the model.

    Raises:
        UserError: E143 for a pickle, E130, E140 and E141 as the file fails.
    """
    if path.suffix in (".pt", ".pth", ".th", ".bin", ".pkl", ".ckpt"):
        raise UserError("E143", f"{path} may hold code (a pickle), so it is not read", "save the state dict as safetensors")
    load_tensors(model, files.read_tensors(path)[0], source=str(path))


def _table(table: ModelTable | TeacherTable) -> dict[str, Any]:
    data: dict[str, Any] = plain.to_data(table)
    data.pop("train", None)
    return {"from": data.pop("factory"), **data}


def _absolute(value: Any, folder: Path, key: str) -> Any:
    """The same data with the paths in it made absolute, so that a resolved recipe runs from anywhere."""
    if isinstance(value, dict):
        return {name: _absolute(item, folder, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_absolute(item, folder, key) for item in value]
    if not isinstance(value, str) or key not in _PATHS:
        return value
    place, colon, function = value.rpartition(":")
    if key == "weights":
        return str((folder / value).resolve())
    return f"{(folder / place).resolve()}:{function}" if colon and place.endswith(".py") else value
