"""A task by name: a built-in set, files of one of the known kinds, or a Python factory that returns one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from mirabelle.errors import UserError, is_out_of_memory
from mirabelle.records.functions import function_from
from mirabelle.sources.checks import check_data
from mirabelle.sources.datasets.cifar10 import cifar10
from mirabelle.sources.datasets.corpus_settings import Corpus
from mirabelle.sources.datasets.digits import digits
from mirabelle.sources.datasets.mnist import mnist
from mirabelle.sources.datasets.settings import (
    VARIABLE,
    Arrays,
    BuiltInImages,
    Files,
    ImageFolder,
    QuestionFile,
    SoundFolder,
    TableFile,
    TextFile,
    data_folder_of_environment,
    settings_from,
)
from mirabelle.sources.names import FOLDER
from mirabelle.task.task import Task

_BUILT_IN: dict[str, Callable[[Path | None, BuiltInImages], Task]] = {
    "cifar10": lambda folder, images: cifar10(_needed(folder, "cifar10"), images),
    "digits": lambda _, images: digits(images),
    "mnist": lambda folder, images: mnist(_needed(folder, "mnist"), images),
}
# By the settings of a kind of file, the module beside this one whose `task_of(path, settings)` reads it.
_READERS: dict[type[Files], str] = {
    Arrays: "arrays",
    Corpus: "corpus",
    ImageFolder: "images",
    QuestionFile: "questions",
    SoundFolder: "sounds",
    TableFile: "table",
    TextFile: "texts",
}


def task_from(name: str, arguments: Mapping[str, Any], *, data_folder: Path | None, folder: Path) -> Task:
    """The task called `name`.

    "cifar10", "digits", "mnist"; "data:PATH" for a file or folder beside these; the path of a folder of class folders of images
    or recordings (with a slash or a leading dot), of an .npz, .csv, .parquet, .tsv, .jsonl, .json or .txt file; or
    "pkg.mod:function" / "./file.py:function" returning a `Task`.

    Args:
        name: of the data.
        arguments: settings of `ImageFolder`, `SoundFolder`, `Arrays`, `TableFile`, `TextFile`, `QuestionFile` or `Corpus`, or
            keywords of the factory; built-in sets take none. A factory with a parameter `data_dir` is given the folder of data
            there.
        data_folder: where built-in sets lie; by default the variable MIRABELLE_DATA.
        folder: against which paths are read.

    Raises:
        UserError: E130 when the data are not there, E131 when they cannot be used or a factory returns no task, E143 for
            files of a kind that is not read, E102 and E103 for settings, E120 when a factory fails.
    """
    sets = data_folder or data_folder_of_environment()
    if name.startswith(FOLDER):
        folder, name = _needed(sets, name), f"./{name.removeprefix(FOLDER)}"
    check_data(name, folder)
    settings = settings_from(name, arguments, folder)
    if isinstance(settings, BuiltInImages):
        return _BUILT_IN[name](sets, settings)
    if settings is not None:
        return _from_files(settings, folder / name)
    return _from_factory(name, arguments, folder, sets)


def _from_files(settings: Files, path: Path) -> Task:
    reader = import_module(f"mirabelle.sources.datasets.{_READERS[type(settings)]}")
    try:
        task: Task = reader.task_of(path, settings)
    except OSError as error:
        raise UserError(
            "E130", f"{error.filename or path} cannot be read: {error.strerror}", "check its permissions"
        ) from error
    return task


def _from_factory(name: str, arguments: Mapping[str, Any], folder: Path, sets: Path | None) -> Task:
    factory = function_from(name, folder)
    if "data_dir" in inspect.signature(factory).parameters and "data_dir" not in arguments:
        arguments = {"data_dir": _needed(sets, name), **arguments}
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
        raise UserError("E130", f'the place of "{name}" is not known', f"give --data-dir FOLDER, or set {VARIABLE}")
    return folder
