"""Hyperparameters as plain data: frozen records to and from TOML, looked up by `family.Class` in the family's door.

The namespace is the registry: `prune.Weights` is whatever `mirabelle.prune` exports under that name. A record declares
type and range of every field; unknown keys, wrong types, values out of range and missing keys are refused, all at once,
each with the path that leads to it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import re
import types
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

from pydantic import ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from mirabelle.errors import UserError, UserErrors, did_you_mean, gathered, raise_all
from mirabelle.records.functions import name_of

R = TypeVar("R")
_STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)

Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Patterns = tuple[str, ...]


@runtime_checkable
class SaysItself(Protocol):
    """What knows its own plain data, such as a list of tables."""

    def to_data(self) -> Any:
        """Tables, lists, numbers and strings."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def record(cls: type[R]) -> type[R]:
    """Class decorator: a frozen, keyword-only dataclass whose fields are held against their types whenever one is made."""
    cls.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]
    check_together = cls.__dict__.get("__post_init__")

    def check(self: Any) -> None:
        _check_fields(self)
        if check_together is not None:
            check_together(self)

    cls.__post_init__ = check  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def _check_fields(instance: Any) -> None:
    """Raise for every field whose value is not of its type or range; keep what the types make of the others."""
    mistakes: list[UserError] = []
    cls = type(instance)
    for name, hint in hints_of(cls).items():  # type: ignore[arg-type]  # classes are hashable
        with gathered(mistakes, name):
            value = getattr(instance, name)
            if isinstance(value, list) and any(get_origin(kind) is tuple for kind in _kinds(hint)):
                value = tuple(value)  # a record does not change, nor does what it holds
            try:
                object.__setattr__(instance, name, _adapter(hint).validate_python(value))
            except ValidationError as error:
                raise _wrong(cls, name, name, value, error) from None
    raise_all(mistakes)


@functools.cache
def hints_of(cls: Hashable) -> dict[str, Any]:
    """The type of each field of a record."""
    assert isinstance(cls, type), "records are classes"
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    """Strict about values; a record in it brings its own configuration."""
    try:
        return TypeAdapter(hint, config=_STRICT)
    except PydanticUserError:
        return TypeAdapter(hint)


def key_of(field: dataclasses.Field[Any]) -> str:
    """The key under which a field stands in files: its name, or the one that its metadata give."""
    return str(field.metadata.get("key", field.name))


def lookup(door: str, name: str, kind: type = object) -> Any:
    """What the family `door` (a room of mirabelle) exports as `name`.

    Raises:
        UserError: E106 when the door has no such name, or no class of that `kind` under it.
    """
    room = importlib.import_module(f"mirabelle.{door}")
    found = getattr(room, name) if name in room.__all__ else None
    if found is None or (kind is not object and not _is_one(found, kind)):
        known = [other for other in room.__all__ if kind is object or _is_one(getattr(room, other), kind)]
        raise UserError("E106", f'"{door}.{name}" is not known', did_you_mean(name, known))
    return found


def _is_one(found: Any, kind: type) -> bool:
    return isinstance(found, type) and issubclass(found, kind) and found is not kind


def build(cls: type[R], data: Any, where: str = "") -> R:
    """An instance of a record from plain data.

    Args:
        cls: a class made with `record`.
        data: keys and values as TOML gives them.
        where: what the data are called in messages, such as "prune.Weights".

    Raises:
        UserError: E102 unknown key, E103 wrong type or value, E104 missing key, E110 out of range, and what the record says of
            several fields together; several come as `UserErrors`, each with its path.
    """
    if not isinstance(data, Mapping):
        raise UserError("E103", f'"{where}" must be a table; got {data!r}', f"write {where} = {{ key = value }}")
    fields = {key_of(field): field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # records are dataclasses
    mistakes: list[UserError] = []
    values: dict[str, Any] = {}
    for key, value in data.items():
        with gathered(mistakes, key):
            if key not in fields:
                raise UserError("E102", f'unknown key "{_joined(where, key)}"', did_you_mean(key, fields))
            name = fields[key].name
            values[name] = _field_value(cls, name, _joined(where, key), value)
    for key, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and key not in data:
            mistakes.append(UserError("E104", f'missing key "{_joined(where, key)}"', described(cls, field.name) or "add it"))
    raise_all(mistakes)
    try:
        return cls(**values)
    except UserError as error:
        led = [one if not where or one.message.startswith(f"{where}.") else one.at(where) for one in error.errors]
        raise UserErrors(led) if len(led) > 1 else led[0] from None


def _field_value(cls: type, name: str, where: str, value: Any) -> Any:
    hint = hints_of(cls)[name]
    inner = record_in(hint)
    if inner is not None and isinstance(value, Mapping):
        return build(inner, value, where)
    try:
        return _adapter(hint).validate_json(json.dumps(value, default=str))  # as JSON, in which lists stand for tuples
    except ValidationError as error:
        raise _wrong(cls, name, where, value, error) from None


def _joined(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def record_in(hint: Any) -> type | None:
    """The record that a field holds, alone or as one of several kinds."""
    return next((kind for kind in _kinds(hint) if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)


def _kinds(hint: Any) -> Iterator[Any]:
    """The alternatives of a type, with their constraints."""
    if get_origin(hint) in (Union, types.UnionType):
        for kind in get_args(hint):
            yield from _kinds(kind)
    elif hint is not type(None):
        yield hint


_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"}
_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def _wrong(cls: type, name: str, where: str, value: Any, error: ValidationError) -> UserError:
    """What is wrong with a value, in terms of the rule that its field declares."""
    mistakes = error.errors(include_url=False)
    inner = tuple(part for part in mistakes[0]["loc"] if isinstance(part, int))
    rule = f"must be {' or '.join(_rule(kind) for kind in _kinds(hints_of(cls)[name]))}; got {value!r}"
    help_text = described(cls, name)
    if any(mistake["type"] in _RANGE for mistake in mistakes):
        finite = " (a finite one)" if mistakes[0]["type"] == "finite_number" else ""
        return UserError("E110", f"{where} {rule}{finite}", help_text, path=inner)
    return UserError("E103", f'"{where}" {rule}', help_text or f"see the docstring of {cls.__name__}", path=inner)


def _rule(hint: Any) -> str:
    """A type in words: "a number in [0, 1)"."""
    origin = get_origin(hint)
    if origin is Annotated:
        kind, *notes = get_args(hint)
        bounds = {key: value for note in notes if isinstance(note, FieldInfo) for key, value in bounds_of(note)}
        return _rule(kind) + _interval(bounds)
    if origin is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in get_args(hint))
    if origin is tuple:
        return "a list of strings" if get_args(hint)[0] is str else "a list of numbers"
    if dataclasses.is_dataclass(hint) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return "a table"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return "a list of tables"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def bounds_of(note: FieldInfo) -> Iterator[tuple[str, float]]:
    """The bounds that a field declares: ("ge", 0), ("lt", 1)."""
    for constraint in note.metadata:
        for key in ("gt", "ge", "lt", "le"):
            if hasattr(constraint, key):
                yield key, getattr(constraint, key)


def _interval(bounds: Mapping[str, float]) -> str:
    low = f"[{bounds['ge']:g}" if "ge" in bounds else f"({bounds['gt']:g}" if "gt" in bounds else ""
    high = f"{bounds['le']:g}]" if "le" in bounds else f"{bounds['lt']:g})" if "lt" in bounds else ""
    if low and not high:
        return f" from {low[1:]}" if low[0] == "[" else f" above {low[1:]}"
    return f" in {low}, {high}" if bounds else ""


def described(cls: type, name: str) -> str:
    """What the docstring of a record says of a field, as `name: words`; empty when it says nothing.

    A field that the docstring of the class does not mention is described by that of the nearest parent that does.

    Example:
        >>> from mirabelle.training import Training
        >>> described(Training, "lr")
        'lr: the highest learning rate.'
    """
    for kind in cls.__mro__:
        for names, words in argument_descriptions(kind.__doc__ or ""):
            if name in names:
                return f"{name}: {words}"
    return ""


@functools.cache
def argument_descriptions(docstring: str) -> tuple[tuple[tuple[str, ...], str], ...]:
    """(names, words) of each entry in the docstring's section "Args"."""
    section = re.search(r"\n    Args:\n((?:        .*\n|\n)+)", docstring + "\n")
    entries = re.split(r"\n        (?=\S)", "\n" + section[1].rstrip()) if section else []
    found = [re.match(r"(\w+(?:, \w+)*): (.+)", entry, re.DOTALL) for entry in entries]
    return tuple((tuple(match[1].split(", ")), " ".join(match[2].split())) for match in found if match)


def to_data(value: Any) -> Any:
    """Plain data (tables, lists, numbers, strings) of a record; fields that are None are left out."""
    if isinstance(value, SaysItself):
        return value.to_data()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return fields_to_data(value)
    if isinstance(value, Mapping):
        return {str(key): to_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_data(item) for item in value]
    if callable(value):
        return name_of(value)
    return value


def fields_to_data(value: Any) -> dict[str, Any]:
    """Plain data of a record's fields; those that are None are left out."""
    pairs = ((key_of(field), getattr(value, field.name)) for field in dataclasses.fields(value))
    return {key: to_data(item) for key, item in pairs if item is not None}


def default_paths(value: Any) -> Iterator[tuple[str, ...]]:
    """Paths to the fields of a record, and of the records in it, that have their default."""
    for field in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
        held = getattr(value, field.name)
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if held == default:
            yield (key_of(field),)
        elif not isinstance(held, SaysItself):
            yield from ((key_of(field), *path) for path in default_paths(held))
