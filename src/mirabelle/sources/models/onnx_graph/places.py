"""Submodules, parameters and buffers under dotted paths that are made from the names in a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def path_of(name: str) -> str:
    """A name in the file as a dotted path of submodules."""
    parts = [re.sub(r"\W+", "_", part).strip("_") for part in re.split(r"[./]", name)]
    return ".".join(part if not part[0].isdigit() or len(parts) > 1 else f"_{part}" for part in parts if part) or "constant"


def add(root: nn.Module, path: str, item: nn.Module | nn.Parameter | Tensor) -> str:
    """Add an item to nested submodules under `path`, or a similar unused name; returns the name."""
    *containers, last = path.split(".")
    module, taken = root, []
    for name in containers:
        child = getattr(module, name, None)
        if not _is_container(child):
            name, child = _free(module, name), nn.Module()  # noqa: PLW2901
            module.add_module(name, child)
        module = child  # type: ignore[assignment]
        taken.append(name)
    last = _free(module, last)
    if isinstance(item, nn.Module):
        module.add_module(last, item)
    elif isinstance(item, nn.Parameter):
        module.register_parameter(last, item)
    else:
        module.register_buffer(last, item)
    return ".".join((*taken, last))


def _is_container(child: Any) -> bool:
    return type(child) is nn.Module


def _free(module: nn.Module, name: str) -> str:
    return next(found for found in _numbered(name) if not hasattr(module, found))


def _numbered(name: str) -> Iterator[str]:
    yield name
    count = 2
    while True:
        yield f"{name}_{count}"
        count += 1


def get(root: nn.Module, place: str) -> Any:
    found: Any = root
    for name in place.split("."):
        found = getattr(found, name)
    return found
