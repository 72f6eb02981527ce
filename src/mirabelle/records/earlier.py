"""Resolved recipes as earlier versions wrote them, in the names of this one.

A run goes on only where its folder holds the recipe that is given now. What has been renamed since is the same thing under
another name, and must not make it another run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Losses stood in fingerprints by the place of their code; now they are named as in recipes.
_LOSSES = {
    "torch.nn.functional:cross_entropy": "cross_entropy",
    "mirabelle.loss:CrossEntropy(classes_last=True, weights=())": "token_cross_entropy",
    "mirabelle.loss:Matching(variances=())": "matching",
}
_PLACE_OF_LOSSES = re.compile(r"^mirabelle\.loss:")
_MODULES = {"mirabelle.sources.keras_model": "mirabelle.sources.models.keras_model"}  # of Keras models given in Python
_CHOICES = {"targets": "include", "ignore": "exclude"}  # of parameters and modules
_TERMS_THAT_CHOOSE = ("L1", "L2", "GroupLasso", "Growing")
_FAMILIES_THAT_CHOOSE = ("prune.", "quantize.")
_ARGUMENTS = {"also": "extra_metrics"}  # of data in files


def in_todays_names(document: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved recipe with everything that was renamed under its present name.

    Args:
        document: the tables of a recipe.toml.

    Example:
        >>> in_todays_names({"step": [{"use": "quantize.Static", "ignore": ["fc"]}]})
        {'step': [{'use': 'quantize.Static', 'exclude': ['fc']}]}
    """
    renamed: dict[str, Any] = {key: _choices_renamed(value) for key, value in document.items()}
    task, fingerprint = renamed.get("task"), renamed.get("fingerprint")
    if isinstance(task, Mapping) and isinstance(task.get("arguments"), Mapping) and ":" not in str(task.get("data")):
        renamed["task"] = {**task, "arguments": _with_keys(task["arguments"], _ARGUMENTS)}
    for key in ("model", "teacher"):
        table = renamed.get(key)
        if isinstance(table, Mapping) and isinstance(table.get("from"), str):
            renamed[key] = {**table, "from": _in_todays_module(table["from"])}
    if isinstance(fingerprint, Mapping) and isinstance(fingerprint.get("judged_by"), str):
        renamed["fingerprint"] = {**fingerprint, "judged_by": _judged_by(fingerprint["judged_by"])}
    return renamed


def _choices_renamed(value: Any) -> Any:
    """Tables of steps and terms, wherever they stand, with the present keys of what they choose."""
    if isinstance(value, list):
        return [_choices_renamed(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    chooses = str(value.get("use", "")).startswith(_FAMILIES_THAT_CHOOSE) or value.get("term") in _TERMS_THAT_CHOOSE
    table = _with_keys(value, _CHOICES) if chooses else value
    return {key: item if key == "arguments" else _choices_renamed(item) for key, item in table.items()}


def _with_keys(table: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """With these keys renamed, unless the table has the present one as well."""
    return {key if names.get(key) in table else names.get(key, key): value for key, value in table.items()}


def _in_todays_module(name: str) -> str:
    for earlier, module in _MODULES.items():
        if name.startswith(f"{earlier}."):
            return module + name.removeprefix(earlier)
    return name


def _judged_by(words: str) -> str:
    for earlier, name in _LOSSES.items():
        if words.startswith(f"{earlier}, "):
            return name + words.removeprefix(earlier)
    return _PLACE_OF_LOSSES.sub("", words)
