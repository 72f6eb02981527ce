"""Lazy packages: their public names are imported on first use, so that importing the package itself is fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazily(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Make a module-level `__getattr__` for `package`, which imports a name from its submodule on first use.

    Args:
        package: name of the package.
        modules: submodule, relative to the package -> the names that the package exports from it.

    Raises:
        AttributeError: raised by the returned function for any other name.

    Example:
        >>> lazily("mirabelle.task", {"goal": ["Goal"]})("Goal").__name__
        'Goal'
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def look_up(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{module_of[name]}"), name)

    return look_up
