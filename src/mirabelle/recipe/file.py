"""Read a recipe file (TOML, schema 1) and report all mistakes in it at once.

Reading imports no heavy packages; the model and the data are built on request.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mirabelle import errors, records
from mirabelle.errors import UserError, UserErrors, at_path, did_you_mean, gathered
from mirabelle.recipe.named_sources import absolute, check_sources, in_sets, judged
from mirabelle.recipe.overrides import Overrides
from mirabelle.recipe.recipe import Recipe
from mirabelle.recipe.tables import ArtifactTable, BaselineTable, MemberTable, ModelTable, RunTable, TaskTable, TeacherTable
from mirabelle.records.annotated_toml import ORIGINS
from mirabelle.records.earlier import in_todays_names
from mirabelle.records.toml_positions import TomlPositions
from mirabelle.records.trust import data_alone, names_of
from mirabelle.sources.datasets.settings import data_folder_of_environment, settings_from
from mirabelle.task.goal import Goal
from mirabelle.training.settings import EXECUTIONS

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.sources.models.weights import StateDict
    from mirabelle.task.task import Task

P = TypeVar("P")
SOURCES = ("schema", "seed", "run", "model", "task", "teacher", "baseline", "artifact")
KEYS = (*SOURCES, "goal", "step")
_WRITTEN_BY_RUNS = ("fingerprint", "decisions")
SCHEMA = 1
MOST_SEEDS = 1 << 63  # limit of the seeds of torch's generators
_AT_ITS_KEY = ("E102", "E104")  # errors that are shown at a key; the others are shown at its value


@dataclass(frozen=True, kw_only=True)
class SourcesFile:
    """A file that names a model, data, and a teacher. Unless it is `trusted`, nothing that it names is imported (E144)."""

    path: Path
    seed: int
    model: ModelTable
    task: TaskTable
    teacher: TeacherTable | None
    baseline: BaselineTable | None
    artifact: ArtifactTable | None
    run: RunTable
    places: TomlPositions
    trusted: bool = True

    @property
    def folder(self) -> Path:
        """The folder relative to which paths in the file are resolved."""
        return self.path.parent

    def build_model(self) -> nn.Module:
        """Build the model to compress, and load the weights that the file names.

        Raises:
            UserError: E120 or E121 if the factory fails; E130, E140, E141 or E143 if the weights cannot be loaded.
        """
        name = "model" if self.model.weights or self.baseline is None else "baseline"
        return self._built(
            ("model",), self.model, (name,), self.model.weights or (self.baseline.weights if self.baseline else None)
        )

    def build_teacher(self) -> nn.Module | None:
        """Build the teacher and load its weights; several teachers give a `distill.Ensemble`. None if there is no teacher."""
        if self.teacher is None:
            return None
        if not self.teacher.members:
            return self._built(("teacher",), self.teacher, ("teacher",), self.teacher.weights)
        from mirabelle.distill import Ensemble

        paths = [("teacher", "members", position) for position in range(len(self.teacher.members))]
        models = [
            self._built(path, member, path, member.weights) for path, member in zip(paths, self.teacher.members, strict=True)
        ]
        return Ensemble(models, [member.share for member in self.teacher.members])

    def _built(
        self,
        path: errors.Path,
        table: ModelTable | TeacherTable | MemberTable,
        weights_path: errors.Path,
        weights: str | StateDict | None,
    ) -> nn.Module:
        """Build the module that a table describes, and load weights.

        Args:
            path: of the table.
            table: names the factory.
            weights_path: path of the table that names the weights.
            weights: to load; None for none.
        """
        from mirabelle.sources import load_weights, model_from

        assert table.factory is not None, "a teacher without members has a factory"
        with self.naming(), self.shown_at(*path, "from"):
            model = model_from(table.factory, table.arguments, self.folder, self.seed)
        if weights is not None:
            with self.naming(), self.shown_at(*weights_path, "weights"):
                load_weights(model, weights, self.folder)
        return model

    def build_task(self, data_folder: Path | None) -> Task:
        """Load the data and create the task; `data_folder` contains built-in data sets."""
        from mirabelle.sources import task_from

        with self.naming(), self.shown_at("task", "data"):
            task = task_from(self.task.data, self.task.arguments, data_folder=data_folder, folder=self.folder)
        if self.task.augment is None:
            return task
        with self.shown_at("task", "augment"):
            return task.with_augment(self.task.augment)

    def source(self) -> dict[str, Any]:
        """The tables that name the model, the data and the teacher, as plain data for the resolved recipe."""
        tables: dict[str, Any] = {"model": records.to_data(self.model), "task": records.to_data(self.task)}
        if self.teacher is not None:
            tables["teacher"] = records.to_data(dataclasses.replace(self.teacher, train=None))
        if self.baseline is not None and self.baseline.weights is not None:
            tables["baseline"] = records.to_data(dataclasses.replace(self.baseline, train=None))
        if self.artifact is not None:
            tables["artifact"] = records.to_data(self.artifact)
        return tables

    def origin(self, path: errors.Path) -> str:
        """The origin of the value at `path` of the resolved recipe, such as "recipe.toml:3" or "default"."""
        place = self.places.given(path)
        if place is not None:
            return f"{place.file}:{place.line}" if place.line else place.file
        return ORIGINS.get(str(path[0]), "default")

    def naming(self) -> AbstractContextManager[None]:
        """A context in which names are those of this file, and are followed only if it is trusted."""
        return names_of(self.folder, trust=self.trusted)

    @contextmanager
    def shown_at(self, *path: str | int) -> Iterator[None]:
        """A context that adds positions in the file to errors: that of the error's own path, or else that of `path`."""
        try:
            yield
        except UserError as error:
            found = [one if one.place else self._placed(one, path) for one in error.errors]
            raise (UserErrors(found) if len(found) > 1 else found[0]) from error.__cause__

    def _placed(self, error: UserError, otherwise: errors.Path) -> UserError:
        own = error.path if error.path and error.path[0] in self._keys else otherwise
        return error.at(self.places.of(own, key=error.code in _AT_ITS_KEY)) if own else error

    @property
    def _keys(self) -> tuple[str, ...]:
        return SOURCES


@dataclass(frozen=True, kw_only=True)
class RecipeFile(SourcesFile):
    """A recipe file that has been read and is valid."""

    goal: Goal
    recipe: Recipe
    decisions: Mapping[str, Any]

    @property
    def _keys(self) -> tuple[str, ...]:
        return KEYS


def read_recipe(
    path: Path,
    settings: Sequence[str] = (),
    *,
    sources: bool = True,
    data_folder: Path | None = None,
    trust: bool = True,
) -> RecipeFile:
    """Read and check a recipe file.

    Args:
        path: of the file.
        settings: values that replace those of the file, such as "step.1.sparsity=0.9" (steps count from 1).
        sources: also check that the files and functions that the recipe names exist; they are not run.
        data_folder: folder of "data:PATH" in names of models and weights; by default that of the environment variable
            MIRABELLE_DATA.
        trust: import the classes that the recipe names. Otherwise a step that names one becomes an `UnreadStep`, and codecs and
            the trainings of baseline and teacher are not read.

    Raises:
        UserError: E130 if there is no such file; E101 if it is not valid TOML; E100 if a setting cannot be read. All other
            mistakes are raised together as `UserErrors`, each with its position in the file.
    """
    read = opened(path, settings, (*KEYS, *_WRITTEN_BY_RUNS), data_folder)
    if not trust:
        read.data = _without_trainings(read.data)
    with names_of(path.parent, trust=trust):
        parts = read.sources(path)
        goal = read.part(lambda tables: records.build(Goal, tables.get("goal", {}), "goal"), "goal")
        recipe = read.part(lambda tables: Recipe.from_data(_section(tables, "step")), "step")
    if sources:
        check_sources({key: read.data[key] for key in KEYS if key in read.data}, (), read.mistakes)
    read.end()
    assert goal is not None, "what could not be read is a mistake"
    assert recipe is not None, "what could not be read is a mistake"
    return RecipeFile(goal=goal, recipe=recipe, decisions=read.data.get("decisions", {}), trusted=trust, **parts)


def opened(path: Path, settings: Sequence[str], keys: Sequence[str], data_folder: Path | None) -> Reading:
    """Read the text of a file whose tables are then read part by part.

    Args:
        path: of the file.
        settings: values that replace those of the file.
        keys: what may stand in it.
        data_folder: of "data:PATH".

    Raises:
        UserError: as `read_recipe` before it looks at the tables.
    """
    text = _text(path)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _not_toml(path, text, error) from None
    overrides = Overrides.of(settings)
    places = TomlPositions(text, str(path), overrides.places())
    here, sets = path.parent.resolve(), data_folder or data_folder_of_environment()
    named = in_sets(in_todays_names(overrides.applied(data)), sets, key="")
    return Reading(judged(absolute(named, here, key=""), here), keys, places)


class Reading:
    """Reads the parts of a file one after the other and collects the mistakes.

    Args:
        data: the tables.
        keys: that may stand in the file.
        places: of the keys.
    """

    def __init__(self, data: Mapping[str, Any], keys: Sequence[str], places: TomlPositions) -> None:
        self.data, self.mistakes, self.places = data, list[UserError](), places
        unknown = sorted(set(data) - set(keys))
        self.mistakes += [UserError("E102", f'unknown key "{key}"', did_you_mean(key, keys), path=(key,)) for key in unknown]
        self.part(_schema, "schema")
        self.part(_seed, "seed")
        self.part(_decisions, "decisions")

    def part(self, read: Callable[[Mapping[str, Any]], P], *path: str) -> P | None:
        with gathered(self.mistakes, *path):
            return read(self.data)
        return None

    def sources(self, path: Path) -> dict[str, Any]:
        """The fields of a `SourcesFile` but `trusted`."""
        model = self.part(lambda tables: records.build(ModelTable, _section(tables, "model"), "model"), "model")
        task = self.part(lambda tables: records.build(TaskTable, _section(tables, "task"), "task"), "task")
        teacher = self.part(lambda tables: _optional(TeacherTable, tables, "teacher"), "teacher")
        baseline = self.part(lambda tables: _optional(BaselineTable, tables, "baseline"), "baseline")
        artifact = self.part(_artifact)
        run = self.part(lambda tables: records.build(RunTable, tables.get("run", {}), "run"), "run") or RunTable()
        self.part(lambda _: _check_weights(model, baseline), "baseline", "weights")
        if task is not None:
            self.part(lambda _: settings_from(task.data, task.arguments, path.parent))
        found = {"model": model, "task": task, "teacher": teacher, "baseline": baseline, "artifact": artifact, "run": run}
        return {"path": path, "seed": self.data.get("seed", 0), "places": self.places, **found}

    def end(self) -> None:
        """Raise all mistakes together, each with its position in the file."""
        if self.mistakes:
            raise UserErrors([one.at(self.places.of(one.path, key=one.code in _AT_ITS_KEY)) for one in self.mistakes])


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise UserError("E130", f"no recipe at {path}", "check the path; `mirabelle init` prints a recipe to start from")
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError("E101", f"{path} is not UTF-8 text: {error.reason}", "save it as UTF-8") from None
    except OSError as error:
        raise UserError("E130", f"{path} cannot be read: {error.strerror}", "check its permissions") from None


def _not_toml(path: Path, text: str, error: tomllib.TOMLDecodeError) -> UserError:
    """The E101 error, with the position from the message of tomllib."""
    message, _, where = str(error).partition(" (at ")
    numbers = [int(word.strip("),")) for word in where.split() if word.strip("),").isdigit()]
    lines = text.split("\n")
    line, column = numbers if len(numbers) == 2 else (len(lines), len(lines[-1]) + 1)  # noqa: PLR2004 (line and column)
    place = errors.Place(str(path), line, column, lines[line - 1] if line <= len(lines) else "")
    return UserError("E101", f"this is not valid TOML: {message}", "correct the line; strings need quotes", place=place)


def _schema(data: Mapping[str, Any]) -> None:
    schema = data.get("schema")
    if schema is None:
        raise UserError("E104", 'missing key "schema"', "write schema = 1 in the first line")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema > SCHEMA or schema < 1:
        raise UserError(
            "E142", f"schema = {schema!r} is not known; this version reads 1", "upgrade Mirabelle, or write schema = 1"
        )


def _seed(data: Mapping[str, Any]) -> None:
    seed = data.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < MOST_SEEDS:
        raise UserError("E103", f'"seed" must be a whole number from 0 to 2⁶³ - 1; got {seed!r}', "write seed = 0")


def _decisions(data: Mapping[str, Any]) -> None:
    """Check the decisions of an earlier run that this run adopts: threads, executions, and why steps were skipped."""
    decisions = data.get("decisions", {})
    if not isinstance(decisions, Mapping):
        raise UserError("E103", f'"decisions" must be a table; got {decisions!r}', "leave it out")
    for key, value in decisions.items():
        threads = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        rules = {"threads": (threads, "a whole number from 1"), "execution": (value in EXECUTIONS, f"one of {EXECUTIONS}")}
        valid, rule = rules.get(key.rpartition("/")[2], (isinstance(value, (str, int, float, bool)), "a plain value"))
        if not valid:
            message = f'"decisions.{key}" must be {rule}; got {value!r}'
            raise UserError("E103", message, "correct it, or leave it out", path=(key,))


def _section(data: Mapping[str, Any], name: str) -> Any:
    if name not in data:
        raise UserError("E104", f"missing table [{name}]", f"add [{'[step]' if name == 'step' else name}]")
    return data[name]


def _optional(cls: type[P], data: Mapping[str, Any], name: str) -> P | None:
    return records.build(cls, data[name], name) if name in data else None


def _without_trainings(data: Mapping[str, Any]) -> dict[str, Any]:
    """The tables without the trainings of the baseline and the teacher, which may name terms of a user's own."""
    tables = {name: table for name in ("baseline", "teacher") if isinstance(table := data.get(name), Mapping)}
    rest = {name: {key: value for key, value in table.items() if key != "train"} for name, table in tables.items()}
    return {name: rest.get(name, table) for name, table in data.items() if rest.get(name, table) or name not in rest}


def _artifact(data: Mapping[str, Any]) -> ArtifactTable | None:
    """Read the table [artifact] and import its codecs, unless names are not followed: then each reader says what it lacks."""
    with at_path("artifact"):
        table = _optional(ArtifactTable, data, "artifact")
        for position, name in enumerate(table.codecs if table is not None and not data_alone() else ()):
            from mirabelle.codecs.codec import CODECS

            with at_path("codecs", position):
                CODECS.member(name)
    return table


def _check_weights(model: ModelTable | None, baseline: BaselineTable | None) -> None:
    if model is not None and model.weights and baseline is not None and baseline.weights:
        raise UserError("E111", "[model] and [baseline] both name weights", "keep one of them")
