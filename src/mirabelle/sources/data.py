"""A task by name: a built-in set, files of one of the known kinds, or a Python factory that returns one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mirabelle import plain
from mirabelle.errors import UserError, did_you_mean, is_out_of_memory
from mirabelle.sources.arrays import Arrays
from mirabelle.sources.digits import digits
from mirabelle.sources.factory import function_from
from mirabelle.sources.images import ImageFolder
from mirabelle.sources.mnist import mnist
from mirabelle.sources.names import names_files, names_function
from mirabelle.sources.table import TableFile
from mirabelle.task import Task

_VARIABLE = "MIRABELLE_DATA"
_BUILT_IN: dict[str, Callable[[Path | None], Task]] = {
    "digits": lambda _: digits(),
    "mnist": lambda folder: mnist(_needed(folder, "mnist")),
}


_FILES: dict[str, type[Arrays | ImageFolder | TableFile]] = {".npz": Arrays, ".csv": TableFile}


def task_from(name: str, arguments: Mapping[str, Any], *, data_folder: Path | None, folder: Path) -> Task:
    """The task called `name`.

    "digits", "mnist"; the path of a folder of class folders of images (with a slash or a leading dot), of an .npz or a .csv
    file; or "pkg.mod:function" / "./file.py:function" returning a `Task`.

    Args:
        name: of the data.
        arguments: settings of `ImageFolder`, `Arrays` or `TableFile`, or keywords of the factory; built-in sets take none.
        data_folder: where built-in sets lie; by default the variable MIRABELLE_DATA.
        folder: against which paths are read.

    Raises:
        UserError: E130 when the data are not there, E131 when they cannot be used or a factory returns no task, E143 for
            files of a kind that is not read, E102 and E103 for settings, E120 when a factory fails.
    """
    if name in _BUILT_IN:
        if arguments:
            raise UserError("E102", f'unknown key "{next(iter(arguments))}" for data "{name}"', "it takes no arguments")
        variable = os.environ.get(_VARIABLE)
        return _BUILT_IN[name](data_folder or (Path(variable) if variable else None))
    path = folder / name
    if path.suffix.lower() in _FILES:
        return _from_files(_FILES[path.suffix.lower()], path, arguments)
    if names_function(name):
        return _from_factory(name, arguments, folder)
    if not names_files(name):
        remedy = f'write "./{name}" for the folder' if path.is_dir() else did_you_mean(name, _BUILT_IN)
        raise UserError("E130", f'data "{name}" is not a built-in set', remedy)
    if path.is_file():
        known = f"give a folder of class folders of images, {' or '.join(_FILES)}"
        raise UserError("E143", f"{path} is of no kind that is read as data", known)
    return _from_files(ImageFolder, path, arguments)


def _from_files(kind: type[Arrays | ImageFolder | TableFile], path: Path, arguments: Mapping[str, Any]) -> Task:
    """The task that files give, under settings as a recipe has them."""
    try:
        source = plain.build(kind, arguments, "task.arguments")
    except UserError as error:
        raise error.within("task", "arguments") from None
    try:
        return source(path)
    except OSError as error:
        raise UserError(
            "E130", f"{error.filename or path} cannot be read: {error.strerror}", "check its permissions"
        ) from error


def _from_factory(name: str, arguments: Mapping[str, Any], folder: Path) -> Task:
    factory = function_from(name, folder)
    try:
        task = factory(**arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        raise UserError("E120", f"{name} raised {type(error).__name__}: {error}", "call it by hand to see why") from error
    if not isinstance(task, Task):
        raise UserError("E131", f"{name} returned {type(task).__name__}", "return a mirabelle.Task")
    return task


def _needed(folder: Path | None, name: str) -> Path:
    if folder is None:
        raise UserError("E130", f'the place of "{name}" is not known', f"give --data-dir FOLDER, or set {_VARIABLE}")
    return folder
