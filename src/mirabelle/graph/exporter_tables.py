"""Tables of operators that torch's exporters build anew for every export, here built once.

The export of a small network takes several times as long without this. A torch without such tables exports as always.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def operators_listed_once() -> Iterator[None]:
    """List the composite operators of C++ once, not once for each of thirty namespaces.

    `torch.export` and its decompositions are called inside. The list is made again in the next context, since a package that is
    imported in between may bring operators of its own.
    """
    from torch._export import utils

    source: Any = utils
    if not hasattr(source, "_materialize_cpp_cia_ops"):
        yield
        return
    listed = mock.patch.object(source, "_materialize_cpp_cia_ops", functools.cache(source._materialize_cpp_cia_ops))
    with listed, _annotations_left_out():
        yield


class _OfAnyKind(type):
    def __getitem__(cls, _: Any) -> Any:
        return cls

    def __instancecheck__(cls, one: Any) -> bool:
        return callable(one)


class _Function(metaclass=_OfAnyKind):
    """In the place of `Callable` in annotations, whose parameters are not looked at."""


@contextmanager
def _annotations_left_out() -> Iterator[None]:
    """Do not evaluate the annotations of a function in torch that each export defines twenty thousand times."""
    from torch import _ops

    if getattr(_ops, "Callable", None) is not Callable:
        yield
        return
    with mock.patch.object(_ops, "Callable", _Function):
        yield


@contextmanager
def translations_read_once() -> Iterator[None]:
    """Read the ONNX translations of two thousand operators once in a process; `torch.onnx.export` is called inside."""
    from torch.onnx._internal.exporter import _registration

    registry: Any = getattr(_registration, "ONNXRegistry", None)
    if not hasattr(registry, "from_torchlib"):
        yield
        return
    with operators_listed_once(), mock.patch.object(registry, "from_torchlib", _copies(registry)):
        yield


@functools.cache
def _copies(registry: Any) -> Any:
    """`ONNXRegistry.from_torchlib` that fills one table for each opset, and gives copies of it, which an export may add to."""
    filled = functools.cache(registry.from_torchlib)

    def from_torchlib(**opset_version: int) -> Any:
        known, copy = filled(**opset_version), registry()
        copy._opset_version = known._opset_version
        copy.functions = {name: list(found) for name, found in known.functions.items()}
        return copy

    return staticmethod(from_torchlib)
