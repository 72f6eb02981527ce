"""What a name of data or weights means, told without importing anything heavy."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mirabelle.errors import UserError

BUILT_IN = ("cifar10", "digits", "mnist")
FOLDER = "data:"  # before a path in the folder of data sets
LINES = (".label", ".train", ".test")  # of text, which a pattern takes apart; the names that TREC gives its files
TEXTS = (".tsv", ".jsonl", ".json", *LINES)
CORPUS = ".txt"
FILES = (".csv", ".npz", ".parquet", *TEXTS, CORPUS)
PACKAGE = "package:"  # before the path of a model inside of an installed Python package
HUBS = ("hf:", "ms:")  # before names of Hugging Face's hub and of ModelScope
ONNX = ".onnx"
MODELS = (ONNX, ".keras", ".h5", ".hdf5")
PICKLES = (".pt", ".pth", ".th", ".bin", ".pkl", ".pickle", ".ckpt")


def names_files(data: str) -> bool:
    """Whether the name of data is the path of a folder or a file, rather than a built-in set or a function.

    Example:
        >>> [names_files(name) for name in ("./photos", "x.csv", "data:x.csv", "digits", "./file.py:task")]
        [True, True, True, False, False]
    """
    return data.startswith(FOLDER) or (
        ("/" in data or data.startswith(".") or data.lower().endswith(FILES)) and not names_function(data)
    )


def names_model_file(model: str) -> bool:
    """Whether the name of a model is the path of another framework's file.

    Example:
        >>> [names_model_file(name) for name in ("x.onnx", "./x.keras", "old.h5", "./file.py:net")]
        [True, True, True, False]
    """
    return model.lower().endswith(MODELS)


def names_model_folder(model: str) -> bool:
    """Whether the name of a model is the path of a folder, such as transformers saves.

    Example:
        >>> [names_model_folder(name) for name in ("./bert", "package:mine/bert", "hf:org/bert", "./file.py:net", "./x.onnx")]
        [True, True, False, False, False]
    """
    other = names_function(model) or names_model_file(model) or model.startswith(HUBS)
    return ("/" in model or model.startswith(".")) and not other and not model.endswith(".py")


def is_trained(model: str) -> bool:
    """Whether what the name of a model means brings weights of its own."""
    return names_model_file(model) or names_model_folder(model) or model.startswith(HUBS)


def names_function(data: str) -> bool:
    """Whether the name of data is that of a function: "package.module:function", "./file.py:function"."""
    return ":" in data and not data.startswith(FOLDER) and "/" not in data.rpartition(":")[2]


def path_of(name: str, folder: Path) -> Path:
    """Where a file or folder of a model lies: against a folder, or inside of an installed package, which is not imported.

    Raises:
        UserError: E130 when no such package is installed.

    Example:
        >>> path_of("nets/bert", Path("/models"))
        PosixPath('/models/nets/bert')
        >>> path_of("package:mirabelle/cli", Path()).name
        'cli'
    """
    if not name.startswith(PACKAGE):
        return folder / name
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError("E130", f'no package "{package}" is installed, so there is no {name}', "install it, or name a folder")
    return Path(next(iter(spec.submodule_search_locations))) / inside
