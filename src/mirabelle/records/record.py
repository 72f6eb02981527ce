"""Records: frozen dataclasses that hold hyperparameters, and their conversion from and to plain data.

A record declares the type and the range of each field. Unknown keys, values of a wrong type or out of range, and missing keys
raise errors, all at once, each with the path of the key. Classes are looked up by the names that packages export:
"prune.Weights" is what `mirabelle.prune` exports as `Weights`.
"""

from __future__ import annotations

import dataclasses
import functools
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
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Patterns = tuple[str, ...]


@runtime_checkable
class HasPlainData(Protocol):
    """A value that converts itself to plain data, such as a weighted sum of terms."""

    def to_data(self) -> Any:
        """The value as tables, lists, numbers and strings."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def record(cls: type[R]) -> type[R]:
    """Class decorator: makes a frozen, keyword-only dataclass that validates the types and ranges of its fields.

    Raises:
        UserError: when an instance is created: E103 for a value of a wrong type, E110 for one out of range; several errors are
            raised together as `UserErrors`.
    """
    cls.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]
    post_init = cls.__dict__.get("__post_init__")

    def check(self: Any) -> None:
        _check_fields(self)
        if post_init is not None:
            post_init(self)

    cls.__post_init__ = check  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def _check_fields(instance: Any) -> None:
    """Validate all fields and replace their values by the converted ones, such as lists by tuples."""
    mistakes: list[UserError] = []
    cls = type(instance)
    for name, hint in hints_of(cls).items():  # type: ignore[arg-type]  # classes are hashable
        with gathered(mistakes, name):
            value = getattr(instance, name)
            if isinstance(value, list) and any(get_origin(kind) is tuple for kind in _kinds(hint)):
                value = tuple(value)  # records are immutable
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
    """A strict validator of a type; records in it have their own configuration."""
    try:
        return TypeAdapter(hint, config=_STRICT)
    except PydanticUserError:
        return TypeAdapter(hint)


def key_of(field: dataclasses.Field[Any]) -> str:
    """The key of a field in plain data: `key` in its metadata, or else its name."""
    return str(field.metadata.get("key", field.name))


def build(cls: type[R], data: Any, where: str = "") -> R:
    """Create a record from plain data.

    Args:
        cls: a class decorated with `record`.
        data: keys and values as read from TOML.
        where: name of the data in messages, such as "prune.Weights".

    Raises:
        UserError: E102 for an unknown key, E103 for a wrong type or value, E104 for a missing key, E110 for a value out of
            range, and the errors of the record's own checks of several fields. Several errors are raised together as
            `UserErrors`, each with its path.
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
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and key not in data:
            mistakes.append(UserError("E104", f'missing key "{_joined(where, key)}"', described(cls, field.name) or "add it"))
    raise_all(mistakes)
    try:
        return cls(**values)
    except UserError as error:
        errors = [one if not where or one.message.startswith(f"{where}.") else one.at(where) for one in error.errors]
        raise UserErrors(errors) if len(errors) > 1 else errors[0] from None


def _field_value(cls: type, name: str, where: str, value: Any) -> Any:
    hint = hints_of(cls)[name]
    inner = record_in(hint)
    if inner is not None and isinstance(value, Mapping):
        return build(inner, value, where)
    try:
        return _adapter(hint).validate_json(json.dumps(value, default=str))  # JSON mode accepts lists for tuples
    except ValidationError as error:
        raise _wrong(cls, name, where, value, error) from None


def _joined(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def record_in(hint: Any) -> type | None:
    """The record among the alternatives of a field's type; None if there is none."""
    return next((kind for kind in _kinds(hint) if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)


def _kinds(hint: Any) -> Iterator[Any]:
    """The alternatives of a union type without None, with their constraints; a type that is not a union is its only one."""
    if get_origin(hint) in (Union, types.UnionType):
        for kind in get_args(hint):
            yield from _kinds(kind)
    elif hint is not type(None):
        yield hint


_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"}
_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def _wrong(cls: type, name: str, where: str, value: Any, error: ValidationError) -> UserError:
    """The E103 or E110 error for a value, with the type and range that its field declares."""
    mistakes = error.errors(include_url=False)
    inner = tuple(part for part in mistakes[0]["loc"] if isinstance(part, int))
    rule = f"must be {' or '.join(_rule(kind) for kind in _kinds(hints_of(cls)[name]))}; got {value!r}"
    help_text = described(cls, name)
    if any(mistake["type"] in _RANGE for mistake in mistakes):
        finite = " (a finite one)" if mistakes[0]["type"] == "finite_number" else ""
        return UserError("E110", f"{where} {rule}{finite}", help_text, path=inner)
    return UserError("E103", f'"{where}" {rule}', help_text or f"see the docstring of {cls.__name__}", path=inner)


def _rule(hint: Any) -> str:
    """A type and its range in words, such as "a number in [0, 1)"."""
    origin = get_origin(hint)
    if origin is Annotated:
        kind, *notes = get_args(hint)
        bounds = {key: value for note in notes if isinstance(note, FieldInfo) for key, value in bounds_of(note)}
        return _rule(kind) + _interval(bounds)
    if origin is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in get_args(hint))
    if origin is tuple:
        kinds = get_args(hint)
        several = "a list of strings" if kinds[0] is str else "a list of numbers"
        return several if kinds[-1] is Ellipsis else f"a list of {len(kinds)}, each {_rule(kinds[0])}"
    if dataclasses.is_dataclass(hint) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        values = [kind for kind in get_args(hint)[1:] if kind is not Any]
        return "a table" + "".join(f", each value {_rule(kind)}" for kind in values)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return "a list of tables"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def bounds_of(note: FieldInfo) -> Iterator[tuple[str, float]]:
    """The bounds that a field declares, such as ("ge", 0) and ("lt", 1)."""
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
    """The description of a field in the docstring of its record, as "name: description"; "" if there is none.

    If the docstring of the class does not describe the field, that of the nearest parent class that does is used.

    Example:
        >>> from mirabelle.training import Training
        >>> described(Training, "lr")
        'lr: highest learning rate.'
    """
    for kind in cls.__mro__:
        for names, words in argument_descriptions(kind.__doc__ or ""):
            if name in names:
                return f"{name}: {words}"
    return ""


@functools.cache
def argument_descriptions(docstring: str) -> tuple[tuple[tuple[str, ...], str], ...]:
    """(names, description) of each entry in the section "Args" of a docstring."""
    section = re.search(r"\n    Args:\n((?:        .*\n|\n)+)", docstring + "\n")
    entries = re.split(r"\n        (?=\S)", "\n" + section[1].rstrip()) if section else []
    found = [re.match(r"(\w+(?:, \w+)*): (.+)", entry, re.DOTALL) for entry in entries]
    return tuple((tuple(match[1].split(", ")), " ".join(match[2].split())) for match in found if match)


def to_data(value: Any) -> Any:
    """Convert a record to plain data: tables, lists, numbers and strings. Fields that are None are omitted."""
    if isinstance(value, HasPlainData):
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
    """Convert the fields of a record to plain data; fields that are None are omitted."""
    pairs = ((key_of(field), getattr(value, field.name)) for field in dataclasses.fields(value))
    return {key: to_data(item) for key, item in pairs if item is not None}


def default_paths(value: Any) -> Iterator[tuple[str, ...]]:
    """The paths of the fields of a record, and of the records in it, that have their default values."""
    for field in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
        current = getattr(value, field.name)
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if current == default:
            yield (key_of(field),)
        elif not isinstance(current, HasPlainData):
            yield from ((key_of(field), *path) for path in default_paths(current))
