"""Where models and data come from: Python factories, built-in sets, weights in safetensors."""

from mirabelle.sources.data import task_from
from mirabelle.sources.factory import function_from, model_from
from mirabelle.sources.weights import load_weights

__all__ = ["function_from", "load_weights", "model_from", "task_from"]
