"""Functions that return Keras models: the seed alone decides what they draw, names do not count up, a killed run goes on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mirabelle.cli import main
from mirabelle.model.program import program_digest
from mirabelle.model.state import fingerprint
from mirabelle.sources import model_from
from mirabelle.sources.models.keras_model.library import library

keras = library()
NET = """
import random
import keras
import numpy as np
import torch
from keras import layers as L

def net(width=6):
    image = keras.Input((8, 8, 1))
    x = L.Conv2D(width, 3, activation="relu")(image)
    x = L.BatchNormalization()(x)
    x = L.Conv2D(width, 3, kernel_initializer=keras.initializers.HeNormal(), activation="relu")(x)
    model = keras.Model(image, L.Dense(3, activation="softmax")(L.GlobalAveragePooling2D()(x)))
    draws = [torch.rand(3), random.random(), np.random.rand(3), keras.random.uniform((3,)).detach()]
    model.layers[-1].bias.assign(sum(np.asarray(drawn) for drawn in draws))
    return model

def small():
    return net(3)

class Scaled(L.Layer):
    def __init__(self, by, **kwargs):
        super().__init__(**kwargs)
        self.by = by

    def call(self, x):
        return x * self.by

def scaled(by=2.0):
    return keras.Sequential([keras.Input((8,)), L.Dense(4), Scaled(by), L.Dense(3)])
"""
RECIPE = """
schema = 1
seed = 5
model = { from = "./net.py:net" }
task = { data = "./data.npz", arguments = { layout = "channels-last", mean = [0.0], deviation = [1.0] } }
teacher = { from = "./net.py:net", arguments = { width = 8 } }
baseline = { train = { epochs = 1, batch_size = 30, lr = 1e-2, precision = "float32" } }

[[step]]
use = "distill.Student"
model = "./net.py:small"
train = { epochs = 2, batch_size = 30, lr = 1e-2, precision = "float32" }
"""
WRITTEN = ("model.onnx", "model.mira", "model.safetensors", "architecture.json")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    draw = np.random.default_rng(0)
    images, classes = draw.random((120, 8, 8, 1), dtype=np.float32), np.arange(120) % 3
    images[np.arange(120), classes] += 1
    np.savez(tmp_path / "data.npz", x_train=images[:60], y_train=classes[:60], x_test=images[60:], y_test=classes[60:])
    return tmp_path


def test_the_seed_alone_decides_and_what_others_draw_goes_on_as_before(folder: Path) -> None:
    def state() -> list[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]  # noqa: NPY002 (Keras draws from it)

    name, before = keras.layers.Dense(2).name, state()
    made = [model_from("./net.py:net", {}, folder, seed) for seed in (5, 5, 6)]
    assert state() == before
    number = int(f"{name}_0".split("_")[1])
    assert keras.layers.Dense(2).name == f"dense_{number + 1}", "the caller's own layers are counted on"
    assert [*made[0].names] == ["conv2d", "batch_normalization", "conv2d_1", "dense"]  # type: ignore[arg-type,misc]
    assert fingerprint(made[0]) == fingerprint(made[1]) != fingerprint(made[2])
    assert program_digest(made[0]) == program_digest(made[1])


def test_what_a_model_of_keras_computes_is_known_in_every_process(folder: Path) -> None:
    digests = [program_digest(model_from("./net.py:scaled", {"by": by}, folder)) for by in (2.0, 2.0, 3.0)]
    assert digests[0] == digests[1] != digests[2], "an attribute of the user's own layer counts"
    assert program_digest(model_from("./net.py:net", {}, folder)) != program_digest(model_from("./net.py:small", {}, folder))


def test_a_killed_run_of_functions_goes_on_to_the_same_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student, a teacher and a model of one function, in one process and after other models were made."""
    assert main.run(["run", "recipe.toml", "--out", "whole", "--quiet"]) == 0

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mirabelle.distill.student.Student.__call__", killed)
        assert main.run(["run", "recipe.toml", "--out", "cut", "--quiet"]) != 0
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    assert main.run(["run", "recipe.toml", "--out", "cut", "--quiet"]) == 0
    for name in WRITTEN:
        assert (folder / "cut" / name).read_bytes() == (folder / "whole" / name).read_bytes(), name
    assert main.run(["verify", "cut"]) == 0
