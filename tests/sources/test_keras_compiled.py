"""A written Keras model is compiled as the original was, so that `evaluate` of plain Keras gives its accuracy."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mirabelle.model.state import copied
from mirabelle.sources.models.keras_model import module_from_keras
from mirabelle.sources.models.keras_model.library import library
from mirabelle.sources.models.keras_model.writing import KerasFile

keras = library()
L = keras.layers


def drawn() -> tuple[Any, Any]:
    draw = np.random.default_rng(0)
    classes = np.arange(90) % 3
    return (draw.normal(size=(90, 8)) + 3 * np.eye(3, 8)[classes]).astype(np.float32), classes


def trained(loss: Any = "sparse_categorical_crossentropy") -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), L.Dense(6, activation="relu"), L.Dense(3, activation="softmax")])
    model.compile(keras.optimizers.Adam(0.02), loss, metrics=["accuracy"])
    model.fit(*drawn(), epochs=3, verbose=0)
    return model


def written(module: KerasFile, folder: Path) -> Path:
    return folder / module.write_back(copied(module), folder)


@pytest.mark.parametrize("source", ["memory", "model.keras", "model.h5"])
def test_evaluate_gives_the_loss_and_accuracy_of_the_original(source: str, tmp_path: Path) -> None:
    model = trained()
    due = model.evaluate(*drawn(), verbose=0)
    if source != "memory":
        model.save(tmp_path / source)
    path = written(module_from_keras(model if source == "memory" else tmp_path / source), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = keras.models.load_model(path)
    np.testing.assert_allclose(again.evaluate(*drawn(), verbose=0), due, rtol=1e-5)
    assert type(again.optimizer).__name__ == "Adam"
    assert float(again.optimizer.learning_rate) == pytest.approx(0.02)
    with zipfile.ZipFile(path) as file:
        optimizer = json.loads(file.read("config.json"))["compile_config"]["optimizer"]
    assert optimizer["module"] == "keras.optimizers", "a file of one backend's class could not be read by another"


def test_a_model_that_was_not_compiled_or_by_code_of_the_users_stays_uncompiled(tmp_path: Path) -> None:
    plain = keras.Sequential([keras.Input((8,)), L.Dense(3)])
    own = trained(lambda due, found: keras.ops.mean((due - found[..., 0]) ** 2))
    for name, model in (("plain", plain), ("own", own)):
        (tmp_path / name).mkdir()
        assert not keras.models.load_model(written(module_from_keras(model), tmp_path / name)).compiled, name


def test_a_compilation_that_names_other_code_is_not_run(tmp_path: Path) -> None:
    trained().save(tmp_path / "model.keras")
    marker = tmp_path / "ran"
    hostile = {"module": "os", "class_name": "system", "config": f"touch {marker}", "registered_name": None}
    with zipfile.ZipFile(tmp_path / "model.keras") as before, zipfile.ZipFile(tmp_path / "bad.keras", "w") as after:
        for name in before.namelist():
            data = before.read(name)
            if name == "config.json":
                data = json.dumps(json.loads(data) | {"compile_config": {"loss": hostile, "optimizer": "adam"}}).encode()
            after.writestr(name, data)
    again = keras.models.load_model(written(module_from_keras(tmp_path / "bad.keras"), tmp_path))
    assert not again.compiled
    assert not marker.exists()


@pytest.mark.slow
def test_plain_keras_in_another_process_evaluates_it(tmp_path: Path) -> None:
    model = trained()
    path = written(module_from_keras(model), tmp_path)
    inputs, classes = drawn()
    np.savez(tmp_path / "data.npz", x=inputs, y=classes)
    program = (
        f"import keras, numpy; d = numpy.load({str(tmp_path / 'data.npz')!r});"
        f"print(keras.models.load_model({str(path)!r}).evaluate(d['x'], d['y'], verbose=0)[1])"
    )
    environment = {"KERAS_BACKEND": "torch", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(model.evaluate(inputs, classes, verbose=0)[1])
