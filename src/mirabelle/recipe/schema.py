"""The JSON Schema of recipe files, for editors. It is generated from the records that read recipes, so that both agree."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from mirabelle import objectives, scores
from mirabelle.objectives.objective import ObjectiveField, Term
from mirabelle.recipe.file import KEYS, MOST_SEEDS, SCHEMA
from mirabelle.recipe.tables import (
    ArtifactTable,
    BaselineTable,
    MembersField,
    MemberTable,
    ModelTable,
    RunTable,
    TaskTable,
    TeacherTable,
)
from mirabelle.records.record import bounds_of, described, hints_of, key_of
from mirabelle.records.schedules import Annealed, Gradual, ScheduleField
from mirabelle.scores.score import Score, ScoreField
from mirabelle.step import STEPS
from mirabelle.task.goal import Goal
from mirabelle.training.joint import Joint

_BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
_KINDS = {str: "string", int: "integer", float: "number", bool: "boolean"}
_OWN = ":"  # occurs in the name of a user-defined class, and only there
_SCHEDULES = ["one-shot", "constant", "linear", "cubic"]


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of recipe files."""
    return _Schema().whole()


class _Schema:
    """Builds the schema; what occurs several times is defined once, under "$defs", and referred to."""

    def __init__(self) -> None:
        self._definitions: dict[str, dict[str, Any]] = {}
        # Fields with their own validators, whose schema does not follow from their types.
        self._own: tuple[tuple[Any, Callable[[], dict[str, Any]]], ...] = (
            (ObjectiveField, lambda: self._defined("Objective", self._objective)),
            (ScoreField, lambda: self._defined("Score", self._score)),
            (ScheduleField, lambda: self._defined("Schedule", self._schedule)),
            (MembersField, self._members),
        )

    def whole(self) -> dict[str, Any]:
        tables = {
            "model": ModelTable,
            "task": TaskTable,
            "teacher": TeacherTable,
            "baseline": BaselineTable,
            "goal": Goal,
            "artifact": ArtifactTable,
            "run": RunTable,
        }
        properties: dict[str, Any] = {
            "schema": {"const": SCHEMA, "description": "version of the recipe format"},
            "seed": {
                "type": "integer",
                "minimum": 0,
                "exclusiveMaximum": MOST_SEEDS,
                "description": "seed of all random numbers of the run",
            },
            **{key: self._table(cls) for key, cls in tables.items()},
            "step": {
                "type": "array",
                "minItems": 1,
                "items": self._steps(),
                "description": "steps in the order in which they run",
            },
            "fingerprint": {"type": "object", "description": "written by a run: identifies its model and data"},
            "decisions": {"type": "object", "description": "written by a run: what it measured and decided"},
        }
        assert set(KEYS) <= set(properties), "every key of a recipe is described"
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "A recipe for Mirabelle",
            "type": "object",
            "properties": properties,
            "required": ["schema", "model", "task", "step"],
            "additionalProperties": False,
            "$defs": dict(sorted(self._definitions.items())),
        }

    def _steps(self) -> dict[str, Any]:
        return {"oneOf": [*(self._table(cls, use=name) for name, cls in sorted(STEPS.known().items())), _own("use")]}

    def _table(self, cls: type, **constants: str) -> dict[str, Any]:
        """The schema of a record as a table; `constants` are additional keys with a fixed value, such as `use`."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        properties: dict[str, Any] = {key: {"const": value} for key, value in constants.items()}
        required = list(constants)
        for name, hint in hints_of(cls).items():
            field = fields[name]
            words = described(cls, name).removeprefix(f"{name}: ")
            schema = self._joint_steps() if cls is Joint and name == "steps" else self._value(hint)
            properties[key_of(field)] = {**schema, **({"description": words} if words else {})}
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                required.append(key_of(field))
        title = (cls.__doc__ or "").strip().splitlines()[0]
        return {
            "type": "object",
            "description": title,
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }

    def _joint_steps(self) -> dict[str, Any]:
        parts = {name: cls for name, cls in sorted(STEPS.known().items()) if hasattr(cls, "prepare")}
        return {
            "type": "array",
            "minItems": 1,
            "items": {"oneOf": [*(self._table(cls, use=name) for name, cls in parts.items()), _own("use")]},
        }

    def _value(self, hint: Any) -> dict[str, Any]:
        """The schema of a field's type."""
        own = next((schema for field, schema in self._own if hint == field), None)
        if own is not None:
            return own()
        origin, parts = get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            kinds = [self._value(kind) for kind in parts if kind is not type(None)]
            return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        if origin is Annotated:
            bounds = {
                _BOUNDS[key]: value for note in parts[1:] if isinstance(note, FieldInfo) for key, value in bounds_of(note)
            }
            return {**self._value(parts[0]), **bounds}
        return self._simple(hint, origin, parts)

    def _simple(self, hint: Any, origin: Any, parts: tuple[Any, ...]) -> dict[str, Any]:
        if origin is Literal:
            return {"enum": list(parts)}
        if origin is tuple:
            return {"type": "array", "items": self._value(parts[0])}
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return self._record(hint)
        return {"type": _KINDS[hint]} if hint in _KINDS else {"type": "object"}

    def _record(self, cls: type) -> dict[str, Any]:
        return self._defined(cls.__name__, lambda: self._table(cls))

    def _defined(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A reference to the definition of this name, which is created if it is missing."""
        if name not in self._definitions:
            self._definitions[name] = make()
        return {"$ref": f"#/$defs/{name}"}

    def _members(self) -> dict[str, Any]:
        return {"type": "array", "minItems": 1, "items": self._record(MemberTable)}

    def _objective(self) -> dict[str, Any]:
        return {
            "type": "array",
            "minItems": 1,
            "items": {"oneOf": [*(self._term(cls) for cls in _exported(objectives, Term)), _own("term")]},
        }

    def _score(self) -> dict[str, Any]:
        names = {cls.__name__: cls for cls in _exported(scores, Score)}
        own = {"type": "string", "pattern": _OWN}
        return {
            "oneOf": [{"enum": list(names)}, own, *(self._table(cls, use=name) for name, cls in names.items()), _own("use")]
        }

    def _schedule(self) -> dict[str, Any]:
        return {"oneOf": [{"enum": _SCHEDULES}, self._record(Gradual)]}

    def _term(self, cls: type) -> dict[str, Any]:
        schema = self._table(cls, term=cls.__name__)
        number = {"anyOf": [{"type": "number"}, self._record(Annealed)]}
        schema["properties"]["weight"] = {**number, "description": "factor of the term, constant or scheduled; 1 by default"}
        return schema


def _own(key: str) -> dict[str, Any]:
    """The schema of a table that names a user-defined class, whose settings are unknown."""
    return {
        "type": "object",
        "description": 'a user-defined class: "package.module:Name" or "./file.py:Name"',
        "properties": {key: {"type": "string", "pattern": _OWN}},
        "required": [key],
    }


def _exported(package: Any, kind: type) -> list[type]:
    exports = (getattr(package, name) for name in package.__all__)
    return [cls for cls in exports if isinstance(cls, type) and issubclass(cls, kind) and cls is not kind]
