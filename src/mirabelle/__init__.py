"""Mirabelle makes trained neural networks small and fast: give it a network, data and a goal.

The public names are looked up when first used, so that `import mirabelle` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mirabelle import distill, objectives, prune, quantize, scores, training
    from mirabelle.artifact import load, pack, save, unpack
    from mirabelle.errors import UserError
    from mirabelle.goal import Goal
    from mirabelle.job import Result, compress
    from mirabelle.recipe import Recipe
    from mirabelle.run import Run
    from mirabelle.schedules import Gradual
    from mirabelle.task import Task
    from mirabelle.training import Training

__version__ = "0.1.0"

_ROOMS = {
    "compress": "job",
    "Result": "job",
    "Goal": "goal",
    "Recipe": "recipe",
    "Run": "run",
    "Task": "task",
    "Training": "training",
    "Gradual": "schedules",
    "UserError": "errors",
    "load": "artifact",
    "save": "artifact",
    "pack": "artifact",
    "unpack": "artifact",
}
_FAMILIES = ("distill", "objectives", "prune", "quantize", "scores", "training")

__all__ = [
    "Goal",
    "Gradual",
    "Recipe",
    "Result",
    "Run",
    "Task",
    "Training",
    "UserError",
    "compress",
    "distill",
    "load",
    "objectives",
    "pack",
    "prune",
    "quantize",
    "save",
    "scores",
    "training",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"mirabelle.{_ROOMS[name]}"), name)
    if name in _FAMILIES:
        return import_module(f"mirabelle.{name}")
    raise AttributeError(f"module 'mirabelle' has no attribute {name!r}")
