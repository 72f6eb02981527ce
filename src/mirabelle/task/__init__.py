"""The task of a model: data in batches, the meaning of its outputs, loss, metrics, goal, and preprocessing of raw inputs."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.numerics.several_outputs import UNLABELLED
    from mirabelle.task.augmentation import Augmentation
    from mirabelle.task.batch import Batch
    from mirabelle.task.generation import Generation
    from mirabelle.task.goal import Goal, Shortfall
    from mirabelle.task.indexed import Indexed
    from mirabelle.task.loss import LOSSES, CrossEntropy, Matching, Standardized, balanced, loss_of
    from mirabelle.task.metric import Metric
    from mirabelle.task.profile import Profile, SizeBytes
    from mirabelle.task.reading_cost import Reading
    from mirabelle.task.samples import Samples, Stream
    from mirabelle.task.task import Task

__all__ = [
    "LOSSES",
    "UNLABELLED",
    "Augmentation",
    "Batch",
    "CrossEntropy",
    "Generation",
    "Goal",
    "Indexed",
    "Matching",
    "Metric",
    "Profile",
    "Reading",
    "Samples",
    "Shortfall",
    "SizeBytes",
    "Standardized",
    "Stream",
    "Task",
    "balanced",
    "loss_of",
]
__getattr__ = lazily(
    "mirabelle.task",
    {
        "augmentation": ["Augmentation"],
        "batch": ["Batch"],
        "generation": ["Generation"],
        "goal": ["Goal", "Shortfall"],
        "indexed": ["Indexed"],
        "loss": ["CrossEntropy", "LOSSES", "Matching", "Standardized", "balanced", "loss_of"],
        "metric": ["Metric"],
        "mirabelle.numerics.several_outputs": ["UNLABELLED"],
        "profile": ["Profile", "SizeBytes"],
        "reading_cost": ["Reading"],
        "samples": ["Samples", "Stream"],
        "task": ["Task"],
    },
)
