"""Doors that open when they are used: names of a package whose modules are heavy are imported at their first look-up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """A module-level `__getattr__` for `package`: each name is looked up in the module of it that `modules` gives.

    Example:
        >>> lazily("mirabelle", {"Goal": "goal"})("Goal").__name__
        'Goal'
    """

    def look_up(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f"{package}.{modules[name]}")
        return module if modules[name] == name else getattr(module, name)

    return look_up
