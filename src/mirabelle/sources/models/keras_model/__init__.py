"""Load Keras models from `.keras` and `.h5` files as PyTorch modules, and save pruned ones as `.keras` files."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.sources.models.keras_model.loading import module_from_keras
    from mirabelle.sources.models.keras_model.module import KerasModule
    from mirabelle.sources.models.keras_model.writing import keras_model_of

__all__ = [
    "KerasModule",
    "keras_model_of",
    "module_from_keras",
]
__getattr__ = lazily(
    "mirabelle.sources.models.keras_model",
    {
        "loading": ["module_from_keras"],
        "module": ["KerasModule"],
        "writing": ["keras_model_of"],
    },
)
