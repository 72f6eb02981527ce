"""Mirabelle compresses trained neural networks: give it a network, data and a goal, and it makes the network small and fast.

Public names are imported when they are first used, so that `import mirabelle` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle import distill, factorize, objectives, prune, quantize, scores, training
    from mirabelle.artifact import PackedModel, load, pack, save, unpack
    from mirabelle.errors import UserError
    from mirabelle.job import LargeResult, Result, Source, compare, compress, compress_large
    from mirabelle.planning.search import auto
    from mirabelle.recipe.recipe import Recipe
    from mirabelle.records.schedules import Gradual
    from mirabelle.run.journal import Stop
    from mirabelle.run.run import Run
    from mirabelle.runtime.program import exported_program
    from mirabelle.task.augmentation import Augmentation
    from mirabelle.task.generation import Generation
    from mirabelle.task.goal import Goal
    from mirabelle.task.task import Task
    from mirabelle.training import Training

__version__ = "0.1.0"

__all__ = [
    "Augmentation",
    "Generation",
    "Goal",
    "Gradual",
    "LargeResult",
    "PackedModel",
    "Recipe",
    "Result",
    "Run",
    "Source",
    "Stop",
    "Task",
    "Training",
    "UserError",
    "auto",
    "compare",
    "compress",
    "compress_large",
    "distill",
    "exported_program",
    "factorize",
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
_NAMES = lazily(
    "mirabelle",
    {
        "artifact": ["PackedModel", "load", "pack", "save", "unpack"],
        "errors": ["UserError"],
        "job": ["LargeResult", "Result", "Source", "compare", "compress", "compress_large"],
        "planning": ["auto"],
        "recipe": ["Recipe"],
        "records.schedules": ["Gradual"],
        "run": ["Run", "Stop"],
        "runtime.program": ["exported_program"],
        "task": ["Augmentation", "Generation", "Goal", "Task"],
        "training": ["Training"],
    },
)
_FAMILIES = ("distill", "factorize", "objectives", "prune", "quantize", "scores", "training")


def __getattr__(name: str) -> Any:
    return import_module(f"mirabelle.{name}") if name in _FAMILIES else _NAMES(name)
