"""Keras models, from `.keras` and `.h5` files, as modules of torch; and back into `.keras` files with their new widths."""

from typing import TYPE_CHECKING

from mirabelle.lazy import lazily

if TYPE_CHECKING:
    from mirabelle.sources.keras_model.loading import module_from_keras
    from mirabelle.sources.keras_model.module import KerasModule
    from mirabelle.sources.keras_model.writing import keras_model_of

__all__ = ["KerasModule", "keras_model_of", "module_from_keras"]
__getattr__ = lazily(
    "mirabelle.sources.keras_model",
    {"KerasModule": "module", "keras_model_of": "writing", "module_from_keras": "loading"},
)
