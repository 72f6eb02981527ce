"""Functions by name: "pkg.mod:function" or "./file.py:function"."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mirabelle.errors import MODULE_OF_FILES, UserError, did_you_mean


def function_from(name: str, folder: Path) -> Callable[..., Any]:
    """The function that a name stands for.

    Raises:
        UserError: E120 when it is not found.
    """
    place, _, attribute = name.partition(":")
    if not place or not attribute:
        raise UserError("E120", f'"{name}" names no function', 'write "package.module:function" or "./file.py:function"')
    module = _module_of_file(folder / place) if place.endswith(".py") else _module(place)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UserError("E120", f'{place} has no function "{attribute}"', did_you_mean(attribute, _functions(module)))
    found: Callable[..., Any] = function
    return found


def name_of(function: Callable[..., Any]) -> str:
    """`module:qualified.name` of a function or class; of a record with its values."""
    if dataclasses.is_dataclass(function) and not isinstance(function, type):
        return f"{function.__module__}:{function!r}"
    return f"{function.__module__}:{getattr(function, '__qualname__', type(function).__qualname__)}"


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError("E120", f'module "{name}" cannot be imported: {error}', "install it, or check the name") from error


def _module_of_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"{MODULE_OF_FILES}{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError("E120", f"no Python file at {path}", "paths are relative to the recipe")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling of the user's own look a module up by its name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError("E120", f"{path} raised {type(error).__name__}: {error}", "run it by hand to see why") from error
    return module


def _functions(module: Any) -> list[str]:
    return [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
