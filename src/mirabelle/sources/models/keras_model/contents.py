"""Look into a Keras file before Keras does: one that names code, or data in other files, is refused, whatever Keras would do.

Keras imports the modules that a config names. Its own checks have been passed by functions ("subprocess", "run"), by functions
of Keras that fetch files or switch the checks off, by a pickled module in a layer, and in .h5 files by any lambda
(CVE-2025-1550, 8747, 9905, 9906, 49655, 12058).
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mirabelle.errors import UserError

CONFIG = "config.json"  # inside a .keras file
_PARTS = (
    "layers|models|engine|initializers|regularizers|constraints|dtype_policies|quantizers|ops|random|optimizers|losses|metrics"
)
_MODULES = re.compile(rf"keras(\.src(\.backend\.torch)?)?(\.({_PARTS})(\.\w+)*)?")
_SPECIAL = ("__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__", "__tuple__")
_CODE = ("Lambda", "__lambda__")
_OTHERS = {  # classes of Keras that hold code, or read other files
    "TorchModuleWrapper": "holds a pickle",
    "TFSMLayer": "reads a SavedModel",
    "JaxLayer": "holds code",
    "FlaxLayer": "holds code",
    "TextVectorization": "may read any file",
    "StringLookup": "may read any file",
    "IntegerLookup": "may read any file",
    "IndexLookup": "may read any file",
    "FeatureSpace": "may read any file",
    "__typespec__": "is a type of TensorFlow",
}
OWN_FUNCTION = 'write a function that returns the Keras model, and give its name: from = "./file.py:function"'


def check_contents(path: Path) -> None:
    """Raise an error if a `.keras` or `.h5` file names code, or data in other files; damaged files are left to Keras.

    Raises:
        UserError: E141.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            faults = list(_faults_of_archive(archive))
    else:
        faults = list(_faults_of_h5(path, "model_config"))
    if faults:
        raise UserError("E141", f"Keras cannot read {path}: {faults[0]}", f"use Keras' own layers instead, or {OWN_FUNCTION}")


def _faults_of_archive(archive: zipfile.ZipFile) -> Iterator[str]:
    for name in archive.namelist():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name.replace("\\", "/")).parts:
            yield f'it contains "{name}", which leads out of its folder'
    if CONFIG in archive.namelist():
        yield from _faults_of_text(archive.read(CONFIG))
    for name in archive.namelist():
        if name.endswith((".h5", ".hdf5")):
            with archive.open(name) as file:
                yield from _faults_of_h5(file)


def _faults_of_text(text: str | bytes) -> Iterator[str]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return  # Keras says that it is damaged
    if isinstance(config, dict):
        config.pop("compile_config", None)  # of the whole model, which is read uncompiled
    yield from _faults_of_config(config)


def _faults_of_config(config: Any) -> Iterator[str]:
    """What makes the config of a model unsafe to follow; all objects in it are looked at, wherever they are."""
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if "class_name" in value and (fault := _fault_of_object(value)):
                yield fault
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _fault_of_object(value: dict[str, Any]) -> str:
    """Why an object in a config is not a layer or setting of Keras itself; "" if it is one, or one that the user registered."""
    name, module = value["class_name"], value.get("module")
    if name == "function":
        return _fault_of_function(value.get("config"), module)
    if name in _SPECIAL or _is_registered(value.get("registered_name") or name):
        return ""
    if name in _CODE:
        return "it contains a lambda, which is code and is not run"
    if name in _OTHERS:
        return f"it contains a {name}, which {_OTHERS[name]}"
    of_keras = module is None or (isinstance(module, str) and _MODULES.fullmatch(module))
    if of_keras and isinstance(name, str) and re.fullmatch(r"[A-Z]\w*", name):
        return ""
    return f'"{name}" is not a class of Keras, and the file does not contain the code of a class'


def _fault_of_function(name: Any, module: Any) -> str:
    """Why a function in a config may be code: it is neither one of Keras' activations nor one that the user registered."""
    import keras

    if _is_registered(name) or (module == "builtins" and isinstance(name, str) and hasattr(keras.activations, name)):
        return ""
    return f'it names the function "{name}" of "{module}", which may be code and is not called'


def _is_registered(name: Any) -> bool:
    import keras

    return isinstance(name, str) and keras.saving.get_registered_object(name) is not None


def _faults_of_h5(file: Any, attribute: str | None = None) -> Iterator[str]:
    """What is unsafe in an HDF5 file: its config in an attribute, and links, storage and views that lead to other files."""
    import h5py

    try:
        opened = h5py.File(file, "r")
    except OSError:
        return  # Keras says that it is damaged
    with opened:
        if attribute is not None and attribute in opened.attrs:
            yield from _faults_of_text(opened.attrs[attribute])
        pending, seen = [opened], set()
        while pending:
            group = pending.pop()
            if (place := h5py.h5o.get_info(group.id).addr) in seen:
                continue
            seen.add(place)
            for name in group:
                if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
                    yield f'"{name}" in it lies in another file'
                    continue
                value = group.get(name)
                if isinstance(value, h5py.Dataset) and (value.external or value.is_virtual):
                    yield f'"{name}" in it lies in another file'
                elif isinstance(value, h5py.Group):
                    pending.append(value)
