"""Import Keras with the PyTorch backend; TensorFlow is not needed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mirabelle.errors import UserError
from mirabelle.records.functions import KERAS_BACKEND, choose_keras_backend

_NAMES, _DRAWS = "object_name_uids", "global_seed_generator"  # Keras' counters of names, and its generator of random numbers


def library() -> Any:
    """The package keras.

    Raises:
        UserError: E160 if it is not installed, or is already imported with another backend.
    """
    choose_keras_backend()
    try:
        import keras
    except ImportError as error:
        raise UserError("E160", f"Keras files need the package keras: {error}", "pip install 'mirabelle[keras]'") from error
    if keras.backend.backend() != "torch":
        raise UserError(
            "E160",
            f"Keras is imported with the backend {keras.backend.backend()}, and torch is needed",
            f"set {KERAS_BACKEND}=torch before Keras is imported",
        )
    return keras


@contextmanager
def as_in_a_new_process() -> Iterator[None]:
    """A context in which Keras numbers its layers from the start, and seeds its own generator from Python's `random` anew.

    The names and weights that a function gives then do not depend on the models that were made before. Afterwards, Keras goes
    on as if nothing had been made. Keras need not be imported yet.
    """
    before = _state()
    _set_state({})
    try:
        yield
    finally:
        _set_state(before)


def _state() -> dict[str, Any]:
    held = _global_state()
    return {} if held is None else {name: held.get_global_attribute(name) for name in (_NAMES, _DRAWS)}


def _set_state(values: dict[str, Any]) -> None:
    """Set both values; those that are missing are made anew by Keras when it needs them."""
    if held := _global_state():
        for name in (_NAMES, _DRAWS):
            held.set_global_attribute(name, values.get(name))


def _global_state() -> Any | None:
    """Keras' module of global state; None if Keras is not imported."""
    return importlib.import_module("keras.src.backend.common.global_state") if "keras" in sys.modules else None
