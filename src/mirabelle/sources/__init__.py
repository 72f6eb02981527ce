"""Load models, data sets and weights: from Python factories, files of many formats, built-in data sets, and hubs."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.sources.datasets.by_name import task_from
    from mirabelle.sources.models.by_name import model_from
    from mirabelle.sources.models.weights import load_weights

__all__ = [
    "load_weights",
    "model_from",
    "task_from",
]
__getattr__ = lazily(
    "mirabelle.sources",
    {
        "datasets.by_name": ["task_from"],
        "models.by_name": ["model_from"],
        "models.weights": ["load_weights"],
    },
)
