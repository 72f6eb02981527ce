"""The names of models, data, weights and classes in the tables of a recipe: checked, and made independent of the folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mirabelle import errors
from mirabelle.errors import UserError, gathered
from mirabelle.sources.checks import check_data, check_model, check_pickle, check_weights
from mirabelle.sources.names import FOLDER, PACKAGE, names_files, names_model_file, names_model_folder

_CHECKS: dict[str | int, Callable[[str], None]] = {  # key that names a model, data or weights -> check of the value
    "from": lambda name: check_model(name, Path()),
    "model": lambda name: check_model(name, Path()),
    "data": lambda name: check_data(name, Path()),
    "weights": lambda name: check_weights(Path(name)),
    "pickle": lambda name: check_pickle(Path(name)),
}
_MEMBERS = ("use", "term", "score", "codecs")  # keys that may name a user-defined class
_JUDGES = ("loss", "metric", "extra_metrics")  # arguments of data from files that may name functions


def check_sources(value: Any, path: errors.Path, mistakes: list[UserError]) -> None:
    """Check all names of functions, data and weights, also in nested tables, and collect the mistakes."""
    if isinstance(value, (Mapping, list)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            if key != "arguments":
                check_sources(item, (*path, key), mistakes)
    elif isinstance(value, str) and path[-1] in _CHECKS:
        with gathered(mistakes, *path):
            _CHECKS[path[-1]](value)


def in_sets(value: Any, sets: Path | None, key: str) -> Any:
    """Replace "data:PATH" in names of models and weights by paths in the folder of data sets, if this folder is known.

    Names of data are kept, so that a run can be continued after the data have moved.
    """
    if isinstance(value, dict) and key != "arguments":
        return {name: in_sets(item, sets, name) for name, item in value.items()}
    if isinstance(value, list):
        return [in_sets(item, sets, key) for item in value]
    if sets is None or key not in _CHECKS or key == "data" or not isinstance(value, str) or not value.startswith(FOLDER):
        return value
    return str((sets / value.removeprefix(FOLDER)).resolve())


def absolute(value: Any, folder: Path, key: str) -> Any:
    """Make the paths in a recipe absolute, so that the resolved recipe can be run from any folder.

    Values of `arguments` are passed to functions of the user and stay unchanged.
    """
    if isinstance(value, dict) and key != "arguments":
        return {name: absolute(item, folder, name) for name, item in value.items()}
    if isinstance(value, list):
        return [absolute(item, folder, key) for item in value]
    if not isinstance(value, str) or key not in (*_CHECKS, *_MEMBERS) or value.startswith((FOLDER, PACKAGE)):
        return value
    if key in ("weights", "pickle"):
        return str((folder / value).resolve())
    of_model = key in ("from", "model") and (names_model_file(value) or names_model_folder(value))
    if of_model or (key == "data" and names_files(value)):
        return str((folder / value).resolve())
    return _located(value, folder)


def judged(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Make the paths of loss and metric functions absolute, if the data are read from files by Mirabelle."""
    task = data.get("task")
    arguments = task.get("arguments") if isinstance(task, Mapping) and names_files(str(task.get("data", ""))) else None
    if not isinstance(task, Mapping) or not isinstance(arguments, Mapping):
        return dict(data)
    judges = {name: _located(arguments[name], folder) for name in _JUDGES if name in arguments}
    return {**data, "task": {**task, "arguments": {**arguments, **judges}}}


def _located(name: Any, folder: Path) -> Any:
    """Make the path in "./file.py:name", or in a list of such names, absolute; other values stay unchanged."""
    if isinstance(name, list):
        return [_located(one, folder) for one in name]
    source, colon, function = name.rpartition(":") if isinstance(name, str) else ("", "", "")
    return f"{(folder / source).resolve()}:{function}" if colon and source.endswith(".py") else name
