"""The JSON Schema of recipes, for editors: made from the records that read them, so that it cannot say anything else."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from mirabelle import objectives, scores
from mirabelle.goal import Goal
from mirabelle.objectives.objective import ObjectiveField, Term
from mirabelle.plain import bounds_of, described, hints_of, key_of
from mirabelle.recipe_file import KEYS, MOST_SEEDS, SCHEMA
from mirabelle.recipe_tables import BaselineTable, MembersField, MemberTable, ModelTable, TaskTable, TeacherTable
from mirabelle.schedules import Annealed, Gradual, ScheduleField
from mirabelle.scores.score import Score, ScoreField
from mirabelle.step import steps_behind_doors
from mirabelle.training.joint import Joint

_BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
_KINDS = {str: "string", int: "integer", float: "number", bool: "boolean"}
_SCHEDULES = ["one-shot", "constant", "linear", "cubic"]


def recipe_schema() -> dict[str, Any]:
    """The schema of a recipe file."""
    tables = {"model": ModelTable, "task": TaskTable, "teacher": TeacherTable, "baseline": BaselineTable, "goal": Goal}
    properties: dict[str, Any] = {
        "schema": {"const": SCHEMA, "description": "the version of this form of recipe"},
        "seed": {
            "type": "integer",
            "minimum": 0,
            "exclusiveMaximum": MOST_SEEDS,
            "description": "of everything random in the run",
        },
        **{key: _table(cls) for key, cls in tables.items()},
        "step": {"type": "array", "minItems": 1, "items": _steps(), "description": "what is done, in this order"},
        "fingerprint": {"type": "object", "description": "written by a run: tells its model and data from others"},
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
    }


def _steps() -> dict[str, Any]:
    return {"oneOf": [_table(cls, use=name) for name, cls in sorted(steps_behind_doors().items())]}


def _table(cls: type, **constants: str) -> dict[str, Any]:
    """A record as a table; `constants` are keys with one value, such as `use`."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    properties: dict[str, Any] = {key: {"const": value} for key, value in constants.items()}
    required = list(constants)
    for name, hint in hints_of(cls).items():
        field = fields[name]
        words = described(cls, name).removeprefix(f"{name}: ")
        schema = _joint_steps() if cls is Joint and name == "steps" else _value(hint)
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


def _joint_steps() -> dict[str, Any]:
    parts = {name: cls for name, cls in sorted(steps_behind_doors().items()) if hasattr(cls, "prepare")}
    return {"type": "array", "minItems": 1, "items": {"oneOf": [_table(cls, use=name) for name, cls in parts.items()]}}


def _value(hint: Any) -> dict[str, Any]:
    """The schema of a field's type."""
    own = next((schema for field, schema in _OWN if hint == field), None)
    if own is not None:
        return own()
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kinds = [_value(kind) for kind in parts if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    if origin is Annotated:
        bounds = {_BOUNDS[key]: value for note in parts[1:] if isinstance(note, FieldInfo) for key, value in bounds_of(note)}
        return {**_value(parts[0]), **bounds}
    return _simple(hint, origin, parts)


def _simple(hint: Any, origin: Any, parts: tuple[Any, ...]) -> dict[str, Any]:
    if origin is Literal:
        return {"enum": list(parts)}
    if origin is tuple:
        return {"type": "array", "items": _value(parts[0])}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _table(hint)
    return {"type": _KINDS[hint]} if hint in _KINDS else {"type": "object"}


def _objective() -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": {"oneOf": [_term(cls) for cls in _exported(objectives, Term)]}}


def _score() -> dict[str, Any]:
    names = {cls.__name__: cls for cls in _exported(scores, Score)}
    return {"oneOf": [{"enum": list(names)}, *(_table(cls, use=name) for name, cls in names.items())]}


def _schedule() -> dict[str, Any]:
    return {"oneOf": [{"enum": _SCHEDULES}, _table(Gradual)]}


# Fields that read themselves, and so cannot be told from their types.
_OWN: tuple[tuple[Any, Callable[[], dict[str, Any]]], ...] = (
    (ObjectiveField, _objective),
    (ScoreField, _score),
    (ScheduleField, _schedule),
    (MembersField, lambda: {"type": "array", "minItems": 1, "items": _table(MemberTable)}),
)


def _term(cls: type) -> dict[str, Any]:
    schema = _table(cls, term=cls.__name__)
    number = {"anyOf": [{"type": "number"}, _table(Annealed)]}
    schema["properties"]["weight"] = {**number, "description": "factor of the term, or one that changes; 1 by default"}
    return schema


def _exported(room: Any, kind: type) -> list[type]:
    things = (getattr(room, name) for name in room.__all__)
    return [thing for thing in things if isinstance(thing, type) and issubclass(thing, kind) and thing is not kind]
