"""Read a Keras file with Keras, without running code in it, and turn Keras' error messages into short ones."""

from __future__ import annotations

import ast
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mirabelle.errors import UserError, first_line
from mirabelle.sources.models.keras_model.contents import CONFIG, OWN_FUNCTION, check_contents
from mirabelle.sources.models.keras_model.library import library

_SUFFIXES = ("_initializer", "_regularizer", "_constraint")  # suffixes of arguments that a trained layer does not need
_SAYS_NOTHING: dict[str, Any] = {"groups": 1, "time_major": False, "renorm": False, "virtual_batch_size": None}
_UNKNOWN_ARGUMENT = re.compile(r"Unrecognized keyword arguments passed to (\w+): (\{.*\})", re.DOTALL)
# Pattern of Keras' message -> what is wrong, and what can be done.
_REFUSALS: tuple[tuple[str, str, str], ...] = (
    (
        r"Unknown layer: '?([\w>]+)|Could not locate class '([\w>]+)'",
        '"{0}" is not a class of Keras, and the file does not contain the code of a class',
        f"{OWN_FUNCTION}; files with Keras' own classes can be read directly",
    ),
    (
        _UNKNOWN_ARGUMENT.pattern,
        "the installed Keras does not know the argument {1} of a {0} layer",
        "save it again as .keras with the Keras that wrote it, without these arguments",
    ),
    (
        r"(Lambda)` layer|a Python (lambda)|activation function identifier: \{'(value)'",
        "it contains a lambda, which is code and is not run",
        f"use a Keras layer instead of it, or {OWN_FUNCTION}",
    ),
    (r"No (model config) found", "it contains only weights, without the layers", f"save the whole model, or {OWN_FUNCTION}"),
    (r"(file signature not found|accessible `.keras` zip)", "it is not a Keras file, or it is damaged", "fetch it again"),
)


def model_in(path: Path) -> Any:
    """The Keras model in a `.keras` or `.h5` file, uncompiled.

    Arguments that the installed Keras does not know are left out if they have no effect, such as `groups = 1` of a depthwise
    convolution from Keras 2.

    Args:
        path: of the file.

    Raises:
        UserError: E160 if Keras is not installed, E130 if the file does not exist, E141 if it is damaged, contains code, or has
            classes of layers or arguments that the installed Keras does not know.
    """
    keras = library()
    if not path.is_file():
        raise UserError("E130", f"no model at {path}", "check the path")
    check_contents(path)
    with tempfile.TemporaryDirectory() as folder:
        place, known = path, dict[str, set[str]]()
        while True:
            try:
                return keras.models.load_model(place, compile=False, safe_mode=True)
            except Exception as error:
                kind, names = _needless(error)
                if not names or names <= known.get(kind, set()):
                    raise _refused(path, error) from error
                known.setdefault(kind, set()).update(names)
                place = _without(path, known, Path(folder))


def _needless(error: Exception) -> tuple[str, set[str]]:
    """The class and the arguments that Keras does not know, if all of them can be left out; else ("", empty set)."""
    found = _UNKNOWN_ARGUMENT.search(str(error))
    given = _given(found[2]) if found else {}
    needless = all(name.endswith(_SUFFIXES) or (name in _SAYS_NOTHING and _SAYS_NOTHING[name] == given[name]) for name in given)
    return (found[1], set(given)) if found and needless else ("", set())


def _given(text: str) -> dict[str, Any]:
    """The arguments listed in a message of Keras; empty if they contain objects that cannot be parsed."""
    try:
        found: dict[str, Any] = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {}
    return found


def _without(path: Path, known: Mapping[str, set[str]], folder: Path) -> Path:
    """A copy of the file without these arguments of these classes."""
    place = folder / path.name
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as before, zipfile.ZipFile(place, "w") as after:
            for name in before.namelist():
                data = before.read(name)
                after.writestr(name, json.dumps(_stripped(json.loads(data), known)) if name == CONFIG else data)
        return place
    import h5py

    shutil.copyfile(path, place)
    with h5py.File(place, "r+") as file:
        file.attrs["model_config"] = json.dumps(_stripped(json.loads(file.attrs["model_config"]), known))
    return place


def _stripped(config: Any, known: Mapping[str, set[str]]) -> Any:
    """A config without these arguments, in all layers within it."""
    if isinstance(config, list):
        return [_stripped(item, known) for item in config]
    if not isinstance(config, dict):
        return config
    found = {key: _stripped(item, known) for key, item in config.items()}
    if isinstance(found.get("config"), dict):
        needless = known.get(found.get("class_name", ""), set())
        found["config"] = {key: item for key, item in found["config"].items() if key not in needless}
    return found


def _refused(path: Path, error: Exception) -> UserError:
    """The error for an exception of Keras, without its listings of whole configs."""
    says = str(error)
    for pattern, rule, remedy in _REFUSALS:
        if match := re.search(pattern, says, re.DOTALL):
            words = [word for word in match.groups() if word]
            arguments = ", ".join(_given(words[-1]) or re.findall(r"'(\w+)':", words[-1])[:1])
            return UserError("E141", f"Keras cannot read {path}: {rule.format(words[0], arguments)}", remedy)
    _, _, reason = says.rpartition("Exception encountered: ")
    reason = first_line(ValueError(reason)) if reason else type(error).__name__
    return UserError("E141", f"Keras cannot read {path}: {reason[:300]}", "save it again as .keras with Keras 3")
