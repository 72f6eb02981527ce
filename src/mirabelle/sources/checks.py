"""What can be said against the name of a model, of data or of weights before any of them is opened: cheap, and run nowhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from mirabelle.errors import UserError, did_you_mean
from mirabelle.sources.datasets.settings import VARIABLE
from mirabelle.sources.names import (
    BUILT_IN,
    FILES,
    FOLDER,
    HUBS,
    LINES,
    PICKLES,
    names_files,
    names_function,
    names_model_file,
    names_model_folder,
    path_of,
)

_KINDS = {
    ".csv": "table",
    ".npz": "arrays",
    ".parquet": "table",
    ".json": "questions",
    ".txt": "text",
    **dict.fromkeys((".tsv", ".jsonl", *LINES), "texts"),
}
_RELATIVE = 'check the path; it is relative to the recipe, and "~" is not expanded'


def check_model(name: str, folder: Path) -> None:
    """Raise unless the name is one of a function that a Python file defines, or of a file that is there.

    Raises:
        UserError: E120, E130.
    """
    if name.startswith(HUBS):
        return
    _check_place(name)
    if names_model_folder(name):
        if not (path_of(name, folder) / "config.json").is_file():
            raise UserError("E130", f"no model of transformers at {name}: there is no config.json", _RELATIVE)
    elif not names_model_file(name):
        check_function(name, folder)
    elif not path_of(name, folder).is_file():
        raise UserError("E130", f"no model at {name}", _RELATIVE)


def check_function(name: str, folder: Path) -> None:
    """Raise unless the name is one of a function, and a Python file defines what it names.

    Raises:
        UserError: E120.
    """
    place, _, function = name.rpartition(":")
    if not place or not function:
        raise UserError(
            "E120", f'"{name}" names no function', 'write "./file.py:function", "package.module:function" or "x.onnx"'
        )
    path = folder / place
    if path.suffix != ".py":
        return
    if not path.is_file():
        raise UserError("E120", f"no Python file at {place}", _RELATIVE)
    try:
        names = set(_bound(ast.parse(path.read_text("utf-8"))))
    except (SyntaxError, ValueError) as error:
        raise UserError("E120", f"{place} raised {type(error).__name__}: {error}", "run it by hand to see why") from error
    if function not in names and not names & {"*", "__getattr__"}:
        raise UserError("E120", f'{place} has no function "{function}"', did_you_mean(function, names))


def check_data(name: str, folder: Path) -> None:
    """Raise when nothing lies where the name of data points, what lies there is of no known kind, or no built-in set is meant.

    Raises:
        UserError: E120 for a function, E130 when data are not there, E143 for a file of a kind that is not read.
    """
    if names_function(name):
        check_function(name, folder)
    elif name.startswith(FOLDER):
        return  # of which only the task knows the folder
    elif names_files(name):
        path = folder / name
        if not path.exists():
            raise UserError("E130", f"no {_KINDS.get(path.suffix.lower(), 'folder of images')} at {name}", _RELATIVE)
        if path.is_file() and path.suffix.lower() not in FILES:
            known = f"give a folder of class folders of images, {' or '.join(FILES)}"
            raise UserError("E143", f"{name} is of no kind that is read as data", known)
    elif name not in BUILT_IN:
        remedy = f'write "./{name}" for the folder' if (folder / name).is_dir() else did_you_mean(name, BUILT_IN)
        raise UserError("E130", f'data "{name}" is not a built-in set', remedy)


def check_weights(path: Path) -> None:
    """Raise when no weights lie there, or a pickle.

    Raises:
        UserError: E130, E143.
    """
    _check_place(str(path))
    if path.suffix in PICKLES:
        remedy = f'save the state dict as safetensors, or write weights = {{ pickle = "{path.name}" }}: tensors alone are read'
        raise UserError("E143", f"{path} may hold code (a pickle), so it is not read", remedy)
    if not path.is_file():
        raise UserError("E130", f"no weights at {path}", "name a .safetensors file")


def check_pickle(path: Path) -> None:
    """Raise when no state dict lies there.

    Raises:
        UserError: E130, E143.
    """
    _check_place(str(path))
    if path.suffix not in PICKLES:
        raise UserError(
            "E143", f"{path} is no pickle", 'name a .safetensors file as weights = "…", a .pt or .th file as pickle'
        )
    if not path.is_file():
        raise UserError("E130", f"no weights at {path}", _RELATIVE)


def _check_place(name: str) -> None:
    """Raise for a name in the folder of data sets that is still one: nobody has said where that folder is."""
    if name.startswith(FOLDER):
        raise UserError("E130", f'the place of "{name}" is not known', f"give --data-dir FOLDER, or set {VARIABLE}")


def _bound(tree: ast.Module) -> Iterator[str]:
    """Names that a module binds; "*" where it takes all those of another."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
