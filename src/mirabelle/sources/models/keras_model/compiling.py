"""How a Keras model was compiled: the optimizer, the loss and the metrics that `evaluate` and `fit` of Keras use."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

Compilation: TypeAlias = dict[str, Any]  # arguments of `keras.Model.compile`, each as plain data
_CONFIG = "config.json"  # inside a .keras file
_OF_KERAS = re.compile(
    r"keras\.(src\.(backend\.\w+\.)?)?(losses|metrics|optimizers)(\.\w+)*"
)  # modules that hold no other code
_KEPT = ("loss", "loss_weights", "metrics", "weighted_metrics")


def compilation_in(path: Path) -> Compilation | None:
    """How the model in a `.keras` or `.h5` file was compiled; None if it was not, or by code that the file does not contain."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            found = json.loads(file.read(_CONFIG)).get("compile_config")
    else:
        import h5py

        with h5py.File(path) as file:
            found = _of_keras_2(json.loads(file.attrs.get("training_config", "null")))
    return found if isinstance(found, dict) and found and _is_plain(found) else None


def compilation_of(model: Any) -> Compilation | None:
    """How a model in memory was compiled; None if it was not, or by code of the user's."""
    with warnings.catch_warnings(action="ignore"):  # of Keras, about a lambda, which is not kept
        found = model.get_compile_config() if getattr(model, "compiled", False) else None
    return found if found and _is_plain(found) else None


def compile_like(model: Any, compilation: Compilation | None) -> None:
    """Compile a model as another one was; it stays as it is if the installed Keras does not know how."""
    optimizer = (compilation or {}).get("optimizer")
    named = optimizer.get("class_name", "").lower() if isinstance(optimizer, Mapping) else optimizer
    for given in ({**compilation, "optimizer": one} for one in (optimizer, named) if compilation):
        try:
            model.compile_from_config(given)
        except Exception:  # noqa: BLE001, S112 (Keras raises any class for arguments of another version)
            continue
        return


def save_portable(model: Any, path: Path) -> None:
    """Save a model so that every backend reads it: an optimizer by its public name, and the zeros of its state deflated."""
    made = path.with_name(f".{path.name}.keras")
    try:
        model.save(made)
        with zipfile.ZipFile(made) as before, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as after:
            for name in before.namelist():
                data = before.read(name)
                after.writestr(name, _with_public_optimizer(data) if name == _CONFIG else data)
    finally:
        made.unlink(missing_ok=True)


def _with_public_optimizer(config: bytes) -> bytes:
    found = json.loads(config)
    optimizer = (found.get("compile_config") or {}).get("optimizer")
    if not isinstance(optimizer, dict) or not str(optimizer.get("module")).startswith("keras.src."):
        return config
    optimizer |= {"module": "keras.optimizers", "registered_name": None}
    return json.dumps(found).encode()


def _is_plain(config: Any) -> bool:
    """Whether every object in a configuration is a loss, a metric or an optimizer of Keras itself."""
    if isinstance(config, list):
        return all(map(_is_plain, config))
    if not isinstance(config, dict):
        return True
    if "class_name" in config and (
        config["class_name"] in ("function", "__lambda__") or not _OF_KERAS.fullmatch(str(config.get("module")))
    ):
        return False
    return all(map(_is_plain, config.values()))


def _of_keras_2(found: Any) -> Compilation | None:
    """The training configuration of an `.h5` file in the form of Keras 3."""
    if not isinstance(found, Mapping):
        return None
    module = {"loss": "keras.losses"}
    kept = {key: _named(found.get(key), module.get(key, "keras.metrics")) for key in _KEPT}
    for key in ("metrics", "weighted_metrics"):
        if isinstance(kept[key], list) and len(kept[key]) == 1 and isinstance(kept[key][0], list):
            kept[key] = kept[key][0]  # of the only output
    return {**kept, "optimizer": _named(found.get("optimizer_config"), "keras.optimizers")}


def _named(value: Any, module: str) -> Any:
    """An object of an `.h5` file, which has only the name of its class, with the module of the class."""
    if isinstance(value, list):
        return [_named(one, module) for one in value]
    if not isinstance(value, Mapping) or "class_name" not in value:
        return value
    if value["class_name"] == "MeanMetricWrapper":
        return value["config"].get("name")
    name = str(value["class_name"]).rpartition(">")[2]
    return {"module": module, "class_name": name, "config": value["config"], "registered_name": None}
