"""Where models and data come from: Python factories, built-in sets, files, weights in safetensors."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.functions import function_from
    from mirabelle.sources.data import task_from
    from mirabelle.sources.models import model_from
    from mirabelle.sources.weights import load_weights

__all__ = ["function_from", "load_weights", "model_from", "task_from"]
__getattr__ = lazily(
    "mirabelle.sources",
    {"function_from": "factory", "load_weights": "weights", "model_from": "models", "task_from": "data"},
)
