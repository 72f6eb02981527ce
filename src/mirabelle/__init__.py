"""Mirabelle makes trained neural networks small and fast: give it a network, data and a goal.

The public names are looked up when first used, so that `import mirabelle` costs nothing.
"""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle import distill, objectives, prune, quantize, scores, training
    from mirabelle.artifact import load, pack, save, unpack
    from mirabelle.augmentation import Augmentation
    from mirabelle.errors import UserError
    from mirabelle.generation import Generation
    from mirabelle.goal import Goal
    from mirabelle.job import Result, Source, compress
    from mirabelle.recipe import Recipe
    from mirabelle.run import Run, Stop
    from mirabelle.schedules import Gradual
    from mirabelle.task import Task
    from mirabelle.training import Training

__version__ = "0.1.0"

_FAMILIES = ("distill", "objectives", "prune", "quantize", "scores", "training")
_MODULES = {
    "compress": "job",
    "Result": "job",
    "Source": "job",
    "Goal": "goal",
    "Recipe": "recipe",
    "Run": "run",
    "Stop": "run",
    "Task": "task",
    "Augmentation": "augmentation",
    "Generation": "generation",
    "Training": "training",
    "Gradual": "schedules",
    "UserError": "errors",
    "load": "artifact",
    "save": "artifact",
    "pack": "artifact",
    "unpack": "artifact",
    **{family: family for family in _FAMILIES},
}

__all__ = [
    "Augmentation",
    "Generation",
    "Goal",
    "Gradual",
    "Recipe",
    "Result",
    "Run",
    "Source",
    "Stop",
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


__getattr__ = lazily("mirabelle", _MODULES)
