"""What a name of data or weights means, told without importing anything heavy."""

from __future__ import annotations

BUILT_IN = ("cifar10", "digits", "mnist")
FOLDER = "data:"  # before a path in the folder of data sets
TEXTS = (".tsv", ".jsonl")
FILES = (".csv", ".npz", *TEXTS)
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
        >>> [names_model_folder(name) for name in ("./bert", "models/bert", "hf:org/bert", "./file.py:net", "./x.onnx")]
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
