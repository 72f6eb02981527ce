"""Keras on the torch backend, without TensorFlow."""

from __future__ import annotations

import os
from typing import Any

from mirabelle.errors import UserError

_VARIABLE = "KERAS_BACKEND"


def library() -> Any:
    """The package.

    Raises:
        UserError: E160 when it is not installed, or runs on another backend already.
    """
    os.environ.setdefault(_VARIABLE, "torch")
    try:
        import keras
    except ImportError as error:
        raise UserError("E160", f"Keras files need the package keras: {error}", "pip install 'mirabelle[keras]'") from error
    if keras.backend.backend() != "torch":
        raise UserError(
            "E160", f"Keras runs on {keras.backend.backend()} here", f"set {_VARIABLE}=torch before Keras is imported"
        )
    return keras
