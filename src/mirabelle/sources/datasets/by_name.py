"""Load a task by name: a built-in data set, files in a supported format, or a Python factory."""

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
from mirabelle.sources.datasets.image_settings import BuiltInImages, ImageFolder, TarShards
from mirabelle.sources.datasets.mnist import mnist
from mirabelle.sources.datasets.settings import (
    VARIABLE,
    Arrays,
    Files,
    SoundFolder,
    TableFile,
    data_folder_of_environment,
    settings_from,
)
from mirabelle.sources.datasets.text_settings import QuestionFile, SequenceFile, TextFile, TokenFile
from mirabelle.sources.names import FOLDER
from mirabelle.task.task import Task

_BUILT_IN: dict[str, Callable[[Path | None, BuiltInImages], Task]] = {
    "cifar10": lambda folder, images: cifar10(_needed(folder, "cifar10"), images),
    "digits": lambda _, images: digits(images),
    "mnist": lambda folder, images: mnist(_needed(folder, "mnist"), images),
}
# For each class of settings, the module in this folder whose function `task_of(path, settings)` reads the files.
_READERS: dict[type[Files], str] = {
    Arrays: "arrays",
    Corpus: "corpus",
    ImageFolder: "images",
    QuestionFile: "questions",
    SoundFolder: "sounds",
    TableFile: "table",
    TarShards: "shards",
    TextFile: "texts",
    TokenFile: "tagged_words",
    SequenceFile: "text_pairs",
}
_READERS_OF_KINDS: dict[tuple[type[Files], str | None], str] = {
    (ImageFolder, "segmentation"): "masks",
    (SoundFolder, "transcription"): "speech",
}


def task_from(name: str, arguments: Mapping[str, Any], *, data_folder: Path | None, folder: Path) -> Task:
    """Load a task by name.

    Args:
        name: "cifar10", "digits" or "mnist"; the path of an .npz, .csv, .parquet, .tsv, .jsonl, .json or .txt file; the path of
            a folder with a subfolder of images or recordings for each class, or with .tar, .parquet or .npy files (with a slash
            or a leading dot); a range of .tar files; "data:PATH" for a path in the folder of data sets; or "pkg.mod:function"
            or "./file.py:function" for a function that returns a `Task`.
        arguments: settings of `ImageFolder`, `TarShards`, `SoundFolder`, `Arrays`, `TableFile`, `TextFile`, `TokenFile`,
            `SequenceFile`, `QuestionFile` or `Corpus`,
            those of `BuiltInImages` for built-in sets, or keyword arguments of the function. A function with a parameter
            `data_dir` gets the folder of data sets.
        data_folder: the folder of data sets; by default the environment variable MIRABELLE_DATA.
        folder: relative paths refer to it.

    Raises:
        UserError: E130 if the data do not exist, E131 if they cannot be used or a function returns no task, E143 if a file type
            is not supported, E102 or E103 if settings are wrong, E120 if a function fails.
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
    own = _READERS_OF_KINDS.get((type(settings), getattr(settings, "kind", None)), _READERS[type(settings)])
    reader = import_module(f"mirabelle.sources.datasets.{own}")
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
        raise UserError(
            "E120", f"{name} raised {type(error).__name__}: {error}", "call the function in Python to see why"
        ) from error
    if not isinstance(task, Task):
        raise UserError("E131", f"{name} returned {type(task).__name__}", "return a mirabelle.Task")
    return task


def _needed(folder: Path | None, name: str) -> Path:
    if folder is None:
        raise UserError("E130", f'the data folder of "{name}" is not known', f"give --data-dir FOLDER, or set {VARIABLE}")
    return folder
