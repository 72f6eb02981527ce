"""Lets `len(x)` and `int(x.shape[0])` in the code of a model stay free while it is traced.

Python wants a number from both, so the batch size of the example would be written into the program. During a trace, the modules
that hold the model's code see a `len` and an `int` of their own, which return a free size as it is.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_CALLS = 3  # functions that functions of the model call, and so on, are followed this far
_NOT_OF_MODELS = ("torch", "builtins", "numpy")


def _length(value: Any) -> Any:
    """The built-in `len`, but a free size for a tensor whose first dimension has one."""
    if isinstance(value, Tensor) and value.ndim and isinstance(value.shape[0], torch.SymInt):
        return value.shape[0]
    return len(value)


class _Integers(type):
    """The class of a class that stands for `int`: the same instances, and free sizes are not converted."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, int)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args and isinstance(args[0], torch.SymInt) else int(*args, **kwargs)


class _Integer(int, metaclass=_Integers):
    """Takes the place of `int`."""


@contextlib.contextmanager
def free_lengths(model: nn.Module) -> Iterator[None]:
    """A context in which `len` and `int` return free sizes, in the modules that define the model's classes and functions."""
    changed: list[dict[str, Any]] = []
    for names in _globals_of(model):
        if not {"len", "int"} & names.keys():
            names.update({"len": _length, "int": _Integer})
            changed.append(names)
    try:
        yield
    finally:
        for names in changed:
            del names["len"], names["int"]


def _globals_of(model: nn.Module) -> list[dict[str, Any]]:
    """The global names of all functions of the model's classes, of functions that it holds, and of those that they call."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__ if _is_of_model(cls.__module__)}
    held = [value for module in model.modules() for value in vars(module).values()]
    pending = [function for cls in classes for value in vars(cls).values() if (function := _function(value)) is not None]
    pending += [function for value in held if (function := _function(value)) is not None]
    seen: dict[int, dict[str, Any]] = {}
    known: set[int] = set()
    for _ in range(_CALLS):
        called = []
        for function in pending:
            if id(function) not in known and _is_of_model(function.__module__):
                known.add(id(function))
                names = function.__globals__
                seen[id(names)] = names
                called += [f for name in function.__code__.co_names if (f := _function(names.get(name))) is not None]
        pending = called
    return list(seen.values())


def _function(value: Any) -> types.FunctionType | None:
    """The Python function behind a function, method, static method or property; None for anything else."""
    for attribute in ("__func__", "fget", "__wrapped__"):
        value = getattr(value, attribute, value) if not isinstance(value, (nn.Module, Tensor)) else None
    return value if isinstance(value, types.FunctionType) else None


def _is_of_model(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] not in _NOT_OF_MODELS
