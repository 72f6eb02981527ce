"""Where models and data come from: Python factories and built-in sets."""

from mirabelle.sources.data import task_from
from mirabelle.sources.factory import function_from, model_from

__all__ = ["function_from", "model_from", "task_from"]
