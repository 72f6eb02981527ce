"""Hyperparameters as plain data: frozen records to and from TOML, looked up by `family.Class` in the family's door.

The namespace is the registry: `prune.Weights` is whatever `mirabelle.prune` exports under that name.
Unknown keys, wrong types and missing keys are refused, all at once, each named by its path.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol, TypeVar, dataclass_transform, get_args, get_type_hints, runtime_checkable

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from mirabelle.errors import UserError, UserErrors, did_you_mean

R = TypeVar("R")
_STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


@runtime_checkable
class SaysItself(Protocol):
    """What knows its own plain data, such as a list of tables."""

    def to_data(self) -> Any:
        """Tables, lists, numbers and strings."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[R]) -> type[R]:
    """Class decorator: a frozen, keyword-only dataclass whose fields are held against their types whenever one is made."""
    cls.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]
    check_ranges = cls.__dict__.get("__post_init__")

    def check(self: Any) -> None:
        _check_types(self)
        if check_ranges is not None:
            check_ranges(self)

    cls.__post_init__ = check  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def _check_types(instance: Any) -> None:
    """Raise E103 for every field whose value is not of its type; keep what the types make of the others."""
    mistakes = []
    for name, adapter in _adapters(type(instance)).items():  # type: ignore[arg-type]  # classes are hashable
        value = getattr(instance, name)
        try:
            object.__setattr__(instance, name, adapter.validate_python(value))
        except ValidationError as error:
            message = error.errors(include_url=False)[0]["msg"]
            mistakes.append(
                UserError("E103", f'"{name}": {message}; got {value!r}', "see the docstring of " + type(instance).__name__)
            )
    if mistakes:
        raise UserErrors(mistakes) if len(mistakes) > 1 else mistakes[0]


@functools.cache
def _adapters(cls: Hashable) -> dict[str, TypeAdapter[Any]]:
    assert isinstance(cls, type), "records are classes"
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: _adapter(hints[field.name]) for field in dataclasses.fields(cls)}


def _adapter(hint: Any) -> TypeAdapter[Any]:
    """Strict about values; records in it are taken as they are. The name that a field has in files does not matter here."""
    if any(isinstance(note, FieldInfo) for note in getattr(hint, "__metadata__", ())):
        hint = get_args(hint)[0]
    try:
        return TypeAdapter(hint, config=_STRICT)
    except PydanticUserError:  # a record alone brings its own configuration
        return TypeAdapter(hint)


def lookup(door: str, name: str) -> Any:
    """What the family `door` (a room of mirabelle) exports as `name`.

    Raises:
        UserError: E106 when the door has no such name.
    """
    room = importlib.import_module(f"mirabelle.{door}")
    if name not in room.__all__:
        raise UserError("E106", f'"{door}.{name}" is not known', did_you_mean(name, room.__all__))
    return getattr(room, name)


def build(cls: type[R], data: Mapping[str, Any], where: str = "") -> R:
    """An instance of a record from plain data.

    Args:
        cls: a class made with `record`.
        data: keys and values as TOML gives them.
        where: the path of `data` in its file, for messages.

    Raises:
        UserError: E102 unknown key, E103 wrong type or value, E104 missing key; several come as `UserErrors`.
    """
    try:
        return TypeAdapter(cls).validate_json(json.dumps(data))
    except ValidationError as error:
        raise UserErrors([_explain(cls, dict(mistake), where) for mistake in error.errors(include_url=False)]) from None
    except UserError as error:
        raise error.at(where) if where else error from None


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
    pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    return {name: to_data(item) for name, item in pairs if item is not None}


def name_of(function: Callable[..., Any]) -> str:
    """`module:qualified.name` of a function or class."""
    return f"{function.__module__}:{getattr(function, '__qualname__', type(function).__qualname__)}"


def _explain(cls: type, mistake: dict[str, Any], where: str) -> UserError:
    *parents, last = mistake["loc"] or ("",)
    path = ".".join(str(part) for part in (*([where] if where else ()), *mistake["loc"]))
    if mistake["type"] == "unexpected_keyword_argument":
        owner = _record_at(cls, parents)
        known = [field.name for field in dataclasses.fields(owner)] if dataclasses.is_dataclass(owner) else []
        return UserError("E102", f'unknown key "{path}"', did_you_mean(str(last), known))
    if mistake["type"] in ("missing", "missing_keyword_only_argument"):
        return UserError("E104", f'missing key "{path}"', "add it")
    return UserError("E103", f'"{path}": {mistake["msg"]}; got {mistake["input"]!r}', "see the step's documentation")


def _record_at(cls: Any, parents: list[Any]) -> Any:
    """The record class in which the key below `parents` stands, or None."""
    for name in parents:
        hint = get_type_hints(cls).get(name) if dataclasses.is_dataclass(cls) else None
        cls = next((kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)), None)
    return cls
