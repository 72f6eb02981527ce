"""Import Keras with the PyTorch backend; TensorFlow is not needed."""

from __future__ import annotations

import os
from typing import Any

from mirabelle.errors import UserError

_VARIABLE = "KERAS_BACKEND"


def library() -> Any:
    """The package keras.

    Raises:
        UserError: E160 if it is not installed, or is already imported with another backend.
    """
    os.environ.setdefault(_VARIABLE, "torch")
    try:
        import keras
    except ImportError as error:
        raise UserError("E160", f"Keras files need the package keras: {error}", "pip install 'mirabelle[keras]'") from error
    if keras.backend.backend() != "torch":
        raise UserError(
            "E160",
            f"Keras is imported with the backend {keras.backend.backend()}, and torch is needed",
            f"set {_VARIABLE}=torch before Keras is imported",
        )
    return keras
