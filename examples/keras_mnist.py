"""A dense network as Keras' own introductions write it, for keras-mnist.toml."""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "torch")
import keras
from keras import layers


def dense(width: int = 512) -> keras.Model:
    """784–width–width–10, with dropout."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Flatten(),
            layers.Dense(width, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(width, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(10, activation="softmax"),
        ]
    )
