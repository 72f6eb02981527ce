"""Hostile Keras files, each with a payload that creates a mark if it runs: run by itself, it tries them on the installed Keras.

    KERAS_BACKEND=torch python tests/hostile/keras_files.py FOLDER

prints one line for each file that Keras reads in its safe mode: whether it was refused, and whether its code ran.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

os.environ.setdefault("KERAS_BACKEND", "torch")


class Evil:
    """Creates the mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def named(module: str, name: str) -> dict[str, Any]:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def calling(function: Any, given: list[Any], **arguments: Any) -> dict[str, Any]:
    """A functional model with a Lambda layer, whose recorded call passes plain values."""
    settings = {"name": "call", "trainable": True, "function": function, "arguments": arguments, "output_shape": [1]}
    return {
        "module": "keras.src.models.functional",
        "class_name": "Functional",
        "config": {
            "name": "model",
            "trainable": True,
            "layers": [
                entry("InputLayer", "x", {"batch_shape": [None, 1], "dtype": "float32", "sparse": False, "name": "x"}),
                {
                    **entry("Lambda", "call", settings),
                    "inbound_nodes": [{"args": [], "kwargs": {"inputs": given[0]}}] if given else [],
                },
            ],
            "input_layers": [["x", 0, 0]],
            "output_layers": [["x", 0, 0]],
        },
        "registered_name": "Functional",
    }


def entry(kind: str, name: str, config: dict[str, Any], module: str = "keras.layers") -> dict[str, Any]:
    base = {"module": module, "class_name": kind, "config": config, "registered_name": None}
    return {**base, "name": name, "inbound_nodes": []}


def sequence(*layers: dict[str, Any]) -> dict[str, Any]:
    """A sequential model of one input and these layers."""
    first = entry("InputLayer", "x", {"batch_shape": [None, 1], "dtype": "float32", "name": "x"})
    config = {"name": "model", "trainable": True, "layers": [first, *layers]}
    return {"module": "keras", "class_name": "Sequential", "config": config, "registered_name": None}


def dense(**settings: Any) -> dict[str, Any]:
    return entry("Dense", "dense", {"name": "dense", "units": 1, "use_bias": True, **settings})


def marshalled(mark: Path) -> dict[str, Any]:
    """A lambda as Keras 3 stores it."""
    from keras.src.utils.python_utils import func_dump

    code, defaults, closure = func_dump(eval(f"lambda x: (open({str(mark)!r}, 'w'), x)[1]"))
    value = {"code": code, "defaults": defaults, "closure": closure}
    return {"class_name": "__lambda__", "config": {"value": value}}


def pickled(mark: Path) -> dict[str, Any]:
    import torch

    buffer = io.BytesIO()
    torch.save(Evil(mark), buffer)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"name": "w", "module": text, "output_shape": None}


def configs(folder: Path, mark: Path) -> dict[str, dict[str, Any]]:
    """Name of a hostile .keras file -> its config."""
    touch = f"touch {mark}"
    (folder / "source").write_text("x")
    return {
        "os.system as the function of a Lambda": calling(named("os", "system"), [touch]),
        "posix.system": calling(named("posix", "system"), [touch]),
        "subprocess.run": calling(named("subprocess", "run"), [["touch", str(mark)]]),
        "exec of builtins": calling(named("builtins", "exec"), [f"open({str(mark)!r}, 'w')"]),
        "pickle by torch": calling(named("torch", "load"), [str(folder / "evil.pt")], weights_only=False),
        "os.system as an activation": sequence(dense(activation=named("os", "system"))),
        "a module of the folder": sequence(dense(activation=named("payload", "net"))),
        "a class of a module of the folder": sequence(entry("Net", "net", {}, "payload")),
        "a class of subprocess": sequence(entry("Popen", "net", {"args": ["touch", str(mark)]}, "subprocess")),
        "a lambda": sequence(entry("Lambda", "f", {"name": "f", "function": marshalled(mark)})),
        "get_file": calling(
            named("keras.utils", "get_file"),
            [mark.name],
            origin=(folder / "source").as_uri(),
            cache_dir=str(folder),
            cache_subdir="",
        ),
        "the switch of the safe mode": calling(named("keras.config", "enable_unsafe_deserialization"), []),
        "the switch as a class": sequence(entry("enable_unsafe_deserialization", "s", {}, "keras.config")),
        "a pickled module": sequence(entry("TorchModuleWrapper", "w", pickled(mark))),
        "a lambda in an initializer": sequence(dense(kernel_initializer=marshalled(mark))),
        "an object of tests": sequence(dense(kernel_initializer={**entry("Evil", "e", {}, "hostile.keras_files")})),
        "a SavedModel": sequence(entry("TFSMLayer", "t", {"filepath": str(folder)})),
        "a vocabulary from another file": sequence(entry("StringLookup", "v", {"vocabulary": "/etc/passwd", "name": "v"})),
    }


def write_keras(path: Path, config: dict[str, Any], weights: bytes | None = None, extra: str | None = None) -> Path:
    """Write a .keras file with this config."""
    if weights is None:
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file.create_group("layers")
        weights = buffer.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.8.0", "date_saved": "2025-01-01@00:00:00"}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights)
        if extra is not None:
            archive.writestr(extra, b"x")
    return path


def write_h5(path: Path, config: dict[str, Any]) -> Path:
    """Write a file of the older HDF5 format with this config."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"], file.attrs["backend"] = "3.8.0", "torch"
        file.create_group("model_weights").attrs["layer_names"] = np.array([], dtype="S1")
    return path


def lambda_of_h5(mark: Path) -> dict[str, Any]:
    """A Lambda as Keras 2 stores it."""
    value = marshalled(mark)["config"]["value"]
    settings = {
        "name": "f",
        "function": [value["code"], None, None],
        "function_type": "lambda",
        "output_shape": [1],
        "output_shape_type": "raw",
        "module": "os",
        "arguments": {},
    }
    first = {"class_name": "InputLayer", "config": {"batch_input_shape": [None, 1], "dtype": "float32", "name": "x"}}
    return {
        "class_name": "Sequential",
        "config": {"name": "m", "layers": [first, {"class_name": "Lambda", "config": settings}]},
    }


def linked(kind: str, secret: Path) -> bytes:
    """Weights of a dense layer, its kernel in another file."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        variables = file.create_group("layers/dense/vars")
        variables["1"] = np.zeros(1, np.float32)
        if kind == "a link":
            variables["0"] = h5py.ExternalLink(str(secret), "secret")
        elif kind == "a raw file":
            variables.create_dataset("0", (1, 1), np.float32, external=[(str(secret), 0, 4)])
        else:
            layout = h5py.VirtualLayout((1, 1), np.float32)
            layout[:] = h5py.VirtualSource(str(secret), "secret", (1, 1))
            variables.create_virtual_dataset("0", layout)
    return buffer.getvalue()


def write_all(folder: Path, mark: Path) -> dict[str, Path]:
    """Write all hostile files: name -> path."""
    import torch

    torch.save(Evil(mark), folder / "evil.pt")
    (folder / "payload.py").write_text(f"open({str(mark)!r}, 'w')\nnet = print\nclass Net: pass\n")
    with h5py.File(folder / "secret.h5", "w") as file:
        file["secret"] = np.ones((1, 1), np.float32)
    found = {name: write_keras(folder / f"{at}.keras", one) for at, (name, one) in enumerate(configs(folder, mark).items())}
    for at, (name, one) in enumerate(configs(folder, mark).items()):
        found[f"{name}, in h5"] = write_h5(folder / f"{at}.h5", one)
    found["a lambda of Keras 2"] = write_h5(folder / "lambda.h5", lambda_of_h5(mark))
    for at, kind in enumerate(("a link", "a raw file", "a view")):
        weights = linked(kind, folder / "secret.h5")
        found[f"weights that are {kind}"] = write_keras(folder / f"link{at}.keras", sequence(dense()), weights)
    for at, name in enumerate(("../../out.txt", "/tmp/out.txt", "assets/../../../out.txt")):
        found[f"a member {name}"] = write_keras(folder / f"member{at}.keras", sequence(dense()), extra=name)
    return found


def tried(path: Path, mark: Path, load: Callable[[Path], Any]) -> tuple[str, bool]:
    """(what loading and calling it raised, whether its code ran)."""
    said = "read"
    try:
        model = load(path)
        model(np.ones((1, 1), np.float32))
    except Exception as error:  # noqa: BLE001 (whatever Keras raises)
        said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    ran = mark.exists()
    mark.unlink(missing_ok=True)
    return said, ran


if __name__ == "__main__":
    import keras

    place = Path(sys.argv[1]).resolve()
    place.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(place))
    os.chdir(place)
    flag = place / "mark"
    bad = 0
    for name, path in write_all(place, flag).items():
        said, ran = tried(path, flag, lambda one: keras.models.load_model(one, compile=False, safe_mode=True))
        bad += ran
        sys.stdout.write(f"{'RAN    ' if ran else 'no code'} {name}: {said[:150]}\n")
    sys.stdout.write(f"keras {keras.__version__}: code of {bad} files ran\n")
