"""Check the names of models, data sets and weights without opening or running anything, so that mistakes are found early."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from mirabelle.errors import UserError, did_you_mean
from mirabelle.sources.datasets.settings import VARIABLE
from mirabelle.sources.datasets.shard_names import shards_at
from mirabelle.sources.missing import RELATIVE, missing, similar_path
from mirabelle.sources.names import (
    BUILT_IN,
    FILES,
    FOLDER,
    HUBS,
    LINES,
    PICKLES,
    SHARD,
    is_trained,
    names_files,
    names_function,
    names_model_file,
    names_model_folder,
    path_of,
)

_ON_HUB = re.compile(r"[\w.-]+/[\w.-]+")  # organisation/model
_KINDS = {
    ".csv": "table",
    ".data": "table",
    ".npz": "arrays",
    ".parquet": "table",
    ".json": "questions",
    ".txt": "text",
    **dict.fromkeys((".tsv", ".jsonl", *LINES), "texts"),
}


def check_model(name: str, folder: Path) -> None:
    """Raise an error unless a model name is that of a function that is defined, or of a file or folder that exists.

    Names of hubs ("hf:", "ms:") are not checked.

    Args:
        name: of the model.
        folder: relative paths refer to it.

    Raises:
        UserError: E120 if there is no such function, E130 if there is no such file or folder,
            E143 if it is a file of weights alone.
    """
    if name.startswith(HUBS):
        return
    _check_place(name)
    if not is_trained(name):
        if ":" not in name and not name.endswith(".py"):
            raise _no_model(name, folder)
        check_function(name, folder)
        return
    path = path_of(name, folder)
    if names_model_folder(name) and path.is_file():
        raise _no_model(name, folder)
    if not path.exists() or names_model_file(name) == path.is_dir():
        on_hub = f'; write "hf:{name}" for the Hugging Face Hub' if _ON_HUB.fullmatch(name) else ""
        raise missing("transformers model" if names_model_folder(name) else "model", name, path, RELATIVE + on_hub)
    if names_model_folder(name) and not (path / "config.json").is_file():
        raise UserError("E130", f"no transformers model at {name}: there is no config.json", RELATIVE)


def _no_model(name: str, folder: Path) -> UserError:
    """The error for a word without a path, such as "bert-base", which names nothing, and for a file that is no model."""
    if Path(name).suffix in (*PICKLES, ".safetensors"):
        message = f"{name} holds weights, but not the model that they belong to"
        return UserError("E143", message, 'write from = "./file.py:function" for the model, and weights = … for the file')
    path = folder / name
    ways = f'write "./{name}" for a path, "hf:{name}" for the Hugging Face Hub, or "./file.py:function" for a function'
    if path.is_file():
        return UserError("E143", f"{name} is no model", 'give an .onnx, .keras or .h5 file, or write "./file.py:function"')
    if path.exists():
        return UserError("E130", f'"{name}" is neither a path nor a function', f'did you mean "./{name}"? Or {ways}')
    near = similar_path(path)
    if near is not None and near.endswith(".py"):
        return UserError("E130", f"no model at {name}", f'did you mean "{near}:function"?')
    return missing("model", name, path, ways)


def check_function(name: str, folder: Path) -> None:
    """Raise an error unless a name is that of a function and, for a Python file, the file defines it.

    Args:
        name: "package.module:function" or "./file.py:function".
        folder: relative paths refer to it.

    Raises:
        UserError: E120 if there is no such function.
    """
    place, _, function = name.rpartition(":")
    if not place or not function:
        raise UserError(
            "E120", f'"{name}" is not a function', 'write "./file.py:function", "package.module:function" or "x.onnx"'
        )
    path = folder / place
    if path.suffix != ".py":
        return
    if not path.is_file():
        raise UserError("E120", f"no Python file at {place}", RELATIVE)
    try:
        names = set(_bound(ast.parse(path.read_text("utf-8"))))
    except (SyntaxError, ValueError) as error:
        raise UserError(
            "E120", f"{place} raised {type(error).__name__}: {error}", "run the file in Python to see why"
        ) from error
    if function not in names and not names & {"*", "__getattr__"}:
        raise UserError("E120", f'{place} has no function "{function}"', did_you_mean(function, names))


def check_data(name: str, folder: Path) -> None:
    """Raise an error unless a data name is that of a function, of a file or folder that can be read, or of a built-in set.

    Args:
        name: of the data.
        folder: relative paths refer to it.

    Raises:
        UserError: E120 if there is no such function, E130 if the data do not exist, E143 if the file type is not supported.
    """
    if names_function(name):
        check_function(name, folder)
    elif name.startswith(FOLDER):
        return  # the folder of data sets is known only when the task is loaded
    elif names_files(name):
        path = folder / name
        if path.suffix.lower() == SHARD and not path.exists():
            shards_at(path)
            return
        if not path.exists():
            raise missing(_KINDS.get(path.suffix.lower(), "folder of images"), name, path)
        if path.is_file() and path.suffix.lower() not in FILES:
            known = f"give a folder of class folders of images, {' or '.join(FILES)}"
            raise UserError("E143", f"{name} has a file type that is not supported as data", known)
    elif name not in BUILT_IN:
        remedy = f'write "./{name}" for the folder' if (folder / name).is_dir() else did_you_mean(name, BUILT_IN)
        raise UserError("E130", f'"{name}" is not a built-in data set', remedy)


def check_weights(path: Path) -> None:
    """Raise an error unless a file of weights exists and is not a pickle.

    Raises:
        UserError: E130 if the file does not exist, E143 if it is a pickle.
    """
    _check_place(str(path))
    if path.suffix in PICKLES:
        remedy = (
            f'save the state dict as safetensors, or write weights = {{ pickle = "{path.name}" }}, which reads only tensors'
        )
        raise UserError("E143", f"{path} is a pickle, which may contain code, so it is not read", remedy)
    if not path.is_file():
        raise missing("weights", str(path), path, "name a .safetensors file")


def check_pickle(path: Path) -> None:
    """Raise an error unless a pickled state dict exists.

    Raises:
        UserError: E130 if the file does not exist, E143 if it is not a pickle.
    """
    _check_place(str(path))
    if path.suffix not in PICKLES:
        raise UserError(
            "E143",
            f"{path} is not a pickle",
            'write weights = "…" for a .safetensors file, weights = { pickle = "…" } for a .pt or .th file',
        )
    if not path.is_file():
        raise missing("weights", str(path), path)


def _check_place(name: str) -> None:
    """Raise an error for a name "data:…" that has not been resolved, since the folder of data sets is unknown."""
    if name.startswith(FOLDER):
        raise UserError("E130", f'the data folder of "{name}" is not known', f"give --data-dir FOLDER, or set {VARIABLE}")


def _bound(tree: ast.Module) -> Iterator[str]:
    """The names that a module defines or imports; "*" for a star import."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
