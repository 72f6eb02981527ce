"""What a name of data or weights means, told without importing anything heavy."""

from __future__ import annotations

BUILT_IN = ("cifar10", "digits", "mnist")
FILES = (".csv", ".npz")
PICKLES = (".pt", ".pth", ".th", ".bin", ".pkl", ".pickle", ".ckpt")


def names_files(data: str) -> bool:
    """Whether the name of data is the path of a folder or a file, rather than a built-in set or a function.

    Example:
        >>> [names_files(name) for name in ("./photos", "x.csv", "digits", "./file.py:task")]
        [True, True, False, False]
    """
    return ("/" in data or data.startswith(".") or data.lower().endswith(FILES)) and not names_function(data)


def names_graph(model: str) -> bool:
    """Whether the name of a model is the path of an ONNX file."""
    return model.lower().endswith(".onnx")


def names_function(data: str) -> bool:
    """Whether the name of data is that of a function: "package.module:function", "./file.py:function"."""
    return ":" in data and "/" not in data.rpartition(":")[2]
