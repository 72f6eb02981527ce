"""Import functions and classes by name: "pkg.mod:name" or "./file.py:name"."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mirabelle.errors import MODULE_OF_FILES, UserError, did_you_mean
from mirabelle.records.trust import check_trusted

KERAS_BACKEND = "KERAS_BACKEND"  # environment variable that Keras reads once, when it is imported
_ZOO = "mirabelle.sources.zoo"  # networks of our own, which take only sizes: the one module that any folder may name
_STATE = "_mirabelle_state_of_file"  # attribute of a module from a file: path, size and time, to detect changes of the file


def function_from(name: str, folder: Path) -> Callable[..., Any]:
    """Import a function by name.

    Args:
        name: "pkg.mod:function" or "./file.py:function".
        folder: relative to which the path of a file is resolved.

    Raises:
        UserError: as `object_from`.
    """
    found: Callable[..., Any] = object_from(name, folder, noun="function")
    return found


def object_from(name: str, folder: Path, *, noun: str = "class") -> Any:
    """Import a function or class by name; objects that are not callable are ignored.

    It must be defined in the named module, not imported there from elsewhere: "os:system" is a function of posix. Modules of
    the same top-level package count as one, since packages export what their parts define ("torchvision.models:resnet18"), and
    so do a file and the modules in its folder.

    Args:
        name: "pkg.mod:name" or "./file.py:name".
        folder: relative to which the path of a file is resolved.
        noun: word for the object in messages.

    Raises:
        UserError: E120 if it is not found, or defined elsewhere; E144 if the name is that of a folder that is not trusted.
    """
    source, _, attribute = name.rpartition(":")
    if not source or not attribute:
        raise UserError("E120", f'"{name}" names no {noun}', f'write "package.module:{noun}" or "./file.py:{noun}"')
    if source != _ZOO:
        check_trusted(name)
    choose_keras_backend()
    module = _module_of_file(folder / source) if source.endswith(".py") else _module(source)
    found = getattr(module, attribute, None)
    if not callable(found):
        raise UserError("E120", f'{source} has no {noun} "{attribute}"', did_you_mean(attribute, _callables(module)))
    if (home := _home(found)) is not None and not _belongs_to(home, module):
        message = f"{source} only imports {attribute}, which {home} defines"
        raise UserError("E120", message, f'write "{home}:{found.__qualname__}", or a {noun} of your own that calls it')
    return found


def choose_keras_backend() -> None:
    """Let Keras, if it is imported later, compute with torch, unless the environment says otherwise."""
    os.environ.setdefault(KERAS_BACKEND, "torch")


def _home(found: Any) -> str | None:
    """The module that defines a function or class; None for other objects, and for functions that do not tell."""
    return getattr(found, "__module__", None) if hasattr(found, "__qualname__") else None


def _belongs_to(home: str, module: Any) -> bool:
    """Whether a module is of the same top-level package as another one, or lies in the folder of the file that this one is."""
    if module.__name__ == _ZOO:
        return home == _ZOO
    one, other = (name.partition(".")[0].lstrip("_") for name in (home, module.__name__))  # operator exports from _operator
    if one == other:
        return True
    file, imported = (getattr(found, "__file__", None) for found in (module, sys.modules.get(home)))
    if not module.__name__.startswith(MODULE_OF_FILES) or file is None or imported is None:
        return False
    return Path(file).resolve().parent in Path(imported).resolve().parents


def name_of(function: Callable[..., Any]) -> str:
    """The name of a function or class as "module:qualified.name"; that of a record as "module:Class(field=value, ...)"."""
    if dataclasses.is_dataclass(function) and not isinstance(function, type):
        return f"{function.__module__}:{function!r}"
    return f"{function.__module__}:{getattr(function, '__qualname__', type(function).__qualname__)}"


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError("E120", f'module "{name}" cannot be imported: {error}', "install it, or check the name") from error


def _module_of_file(path: Path) -> Any:
    """Import a file as a module; the file is run only once, and again if it has changed."""
    name = f"{MODULE_OF_FILES}{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError("E120", f"no Python file at {path}", "paths are relative to the recipe")
    stat = path.stat()
    state = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    known = sys.modules.get(name)
    if known is not None and getattr(known, _STATE, None) == state:
        return known
    module = importlib.util.module_from_spec(spec)
    setattr(module, _STATE, state)
    sys.modules[name] = module  # dataclasses and pickle look up modules by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError("E120", f"{path} raised {type(error).__name__}: {error}", "run it by hand to see why") from error
    return module


def _callables(module: Any) -> list[str]:
    return [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
