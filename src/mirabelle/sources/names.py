"""What the name of a model or of data refers to: a function, a file, a folder or a hub. Imports nothing heavy."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mirabelle.errors import UserError

BUILT_IN = ("cifar10", "digits", "mnist")
FOLDER = "data:"  # prefix of a path in the folder of data sets
LINES = (".label", ".train", ".test")  # text files whose lines are parsed by a regular expression; TREC uses these suffixes
TABLES = (".csv", ".data", ".parquet")
QUESTIONS = ".json"
TAGGED = (".conll", ".conllu", ".bio", ".iob", ".iob2")  # one word and its tag on each line
TEXTS = (".tsv", ".jsonl", QUESTIONS, *LINES)
CORPUS = ".txt"
SHARD = ".tar"
FILES = (*TABLES, ".npz", *TEXTS, *TAGGED, CORPUS, SHARD)
PACKAGE = "package:"  # prefix of a model path inside an installed Python package
HUBS = ("hf:", "ms:")  # prefixes of names on the Hugging Face Hub and on ModelScope
SENTENCES = "modules.json"  # the file in a folder of sentence-transformers that lists its modules
ONNX = ".onnx"
MODELS = (ONNX, ".keras", ".h5", ".hdf5")
PICKLES = (".pt", ".pth", ".th", ".bin", ".pkl", ".pickle", ".ckpt")


def names_files(data: str) -> bool:
    """Whether a data name is the path of a folder or a file, not a built-in set or a function.

    Example:
        >>> [names_files(name) for name in ("./photos", "x.csv", "data:x.csv", "digits", "./file.py:task")]
        [True, True, True, False, False]
    """
    return data.startswith(FOLDER) or (
        ("/" in data or data.startswith(".") or data.lower().endswith(FILES)) and not names_function(data)
    )


def names_model_file(model: str) -> bool:
    """Whether a model name is the path of an ONNX or Keras file.

    Example:
        >>> [names_model_file(name) for name in ("x.onnx", "./x.keras", "old.h5", "./file.py:net")]
        [True, True, True, False]
    """
    return model.lower().endswith(MODELS)


def names_model_folder(model: str) -> bool:
    """Whether a model name is the path of a folder, as saved by transformers.

    Example:
        >>> [names_model_folder(name) for name in ("./bert", "package:mine/bert", "hf:org/bert", "./file.py:net", "./x.onnx")]
        [True, True, False, False, False]
    """
    other = names_function(model) or names_model_file(model) or model.startswith(HUBS)
    return ("/" in model or model.startswith(".")) and not other and not model.endswith(".py")


def is_trained(model: str) -> bool:
    """Whether a model name refers to a file, folder or hub, and not to a factory: such a model has its own weights."""
    return names_model_file(model) or names_model_folder(model) or model.startswith(HUBS)


def names_function(data: str) -> bool:
    """Whether a name refers to a function: "package.module:function" or "./file.py:function"."""
    return ":" in data and not data.startswith(FOLDER) and "/" not in data.rpartition(":")[2]


def path_of(name: str, folder: Path) -> Path:
    """The path of a model's file or folder. For "package:name/path", it is inside an installed package, which is not imported.

    Args:
        name: of the model.
        folder: relative paths refer to it.

    Raises:
        UserError: E130 if no such package is installed.

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
        raise UserError("E130", f'{name} needs the package "{package}", which is not installed', "install it, or name a folder")
    return Path(next(iter(spec.submodule_search_locations))) / inside
