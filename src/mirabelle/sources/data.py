"""A task by name: a built-in set, or a Python factory that returns one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mirabelle.errors import UserError, did_you_mean
from mirabelle.sources.digits import digits
from mirabelle.sources.factory import function_from
from mirabelle.sources.mnist import mnist
from mirabelle.task import Task

_VARIABLE = "MIRABELLE_DATA"
_BUILT_IN: dict[str, Callable[[Path | None], Task]] = {
    "digits": lambda _: digits(),
    "mnist": lambda folder: mnist(_needed(folder, "mnist")),
}


def task_from(name: str, arguments: Mapping[str, Any], *, data_folder: Path | None, folder: Path) -> Task:
    """The task called `name`: "digits", "mnist", or "pkg.mod:function" / "./file.py:function" returning a `Task`.

    Args:
        name: of the data.
        arguments: keywords of the factory; built-in sets take none.
        data_folder: where data sets lie; by default the variable MIRABELLE_DATA.
        folder: against which the path of a Python file is read.

    Raises:
        UserError: E130 when the data are not there, E120 when the factory fails, E131 when it returns no task.
    """
    if ":" not in name:
        if name not in _BUILT_IN:
            raise UserError("E130", f'data "{name}" is not a built-in set', did_you_mean(name, _BUILT_IN))
        variable = os.environ.get(_VARIABLE)
        return _BUILT_IN[name](data_folder or (Path(variable) if variable else None))
    factory = function_from(name, folder)
    try:
        task = factory(**arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError("E120", f"{name} raised {type(error).__name__}: {error}", "call it by hand to see why") from error
    if not isinstance(task, Task):
        raise UserError("E131", f"{name} returned {type(task).__name__}", "return a mirabelle.Task")
    return task


def _needed(folder: Path | None, name: str) -> Path:
    if folder is None:
        raise UserError("E130", f'the place of "{name}" is not known', f"give --data-dir FOLDER, or set {_VARIABLE}")
    return folder
