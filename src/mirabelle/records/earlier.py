"""Resolved recipes of earlier versions, converted to the current names.

A run is continued only if the recipe in its folder equals the given one. A setting that was renamed in the meantime must not
count as a difference, nor one that was added and changes nothing that the recipe does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Earlier fingerprints name losses by the module of their code, current ones by their names in recipes.
_LOSSES = {
    "torch.nn.functional:cross_entropy": "cross_entropy",
    "mirabelle.loss:CrossEntropy(classes_last=True, weights=())": "token_cross_entropy",
    "mirabelle.loss:Matching(variances=())": "matching",
}
_MODULE_OF_LOSSES = re.compile(r"^mirabelle\.loss:")
_MODULES = {"mirabelle.sources.keras_model": "mirabelle.sources.models.keras_model"}  # of Keras models given in Python
_SELECTIONS = {"targets": "include", "ignore": "exclude"}  # of parameters and modules
_TERMS_WITH_SELECTIONS = ("L1", "L2", "GroupLasso", "Growing")
_FAMILIES_WITH_SELECTIONS = ("prune.", "quantize.")
_ARGUMENTS = {"also": "extra_metrics"}  # of data sets read from files
_ADDED: dict[str, dict[str, Any]] = {  # with what these steps did before
    "prune.Weights": {"revive": False, "rounds": 1, "rewind": "learning-rate"},
    "quantize.Static": {
        "per_channel": True, "symmetric": False, "rounding": "nearest", "equalize": False, "correct_bias": False,
    },
    "quantize.Weights": {
        "zero_points": False, "method": "nearest", "clipping": True, "samples": 128, "damping": 0.01, "activation_order": False,
        "kernel": "float", "batch": 1,
    },
}  # fmt: skip
ADDED_TO_TRAININGS = {"group_by_length": False, "recompute": False, "compile": False, "sync_batch_norm": False, "shard": False}
_FLOORS = {"prune.Weights": 0.1, "prune.Channels": 0.2}  # defaults of a setting that was added, for rankings over layers


def in_todays_names(document: Mapping[str, Any]) -> dict[str, Any]:
    """Replace earlier names of settings, modules and losses in a resolved recipe by the current ones.

    Args:
        document: the tables of a `recipe.toml`.

    Example:
        >>> in_todays_names({"step": [{"use": "quantize.Dynamic", "ignore": ["fc"]}]})
        {'step': [{'use': 'quantize.Dynamic', 'exclude': ['fc']}]}
    """
    renamed: dict[str, Any] = {key: _in_table(key, _with_current_selections(value)) for key, value in document.items()}
    if isinstance(renamed.get("step"), list):
        renamed["step"] = [_with_floor(_with_added(step)) for step in renamed["step"]]
    task, fingerprint = renamed.get("task"), renamed.get("fingerprint")
    if isinstance(task, Mapping) and isinstance(task.get("arguments"), Mapping) and ":" not in str(task.get("data")):
        renamed["task"] = {**task, "arguments": _with_keys(task["arguments"], _ARGUMENTS)}
    for key in ("model", "teacher"):
        table = renamed.get(key)
        if isinstance(table, Mapping) and isinstance(table.get("from"), str):
            renamed[key] = {**table, "from": _with_current_module(table["from"])}
    if isinstance(fingerprint, Mapping) and isinstance(fingerprint.get("judged_by"), str):
        renamed["fingerprint"] = {**fingerprint, "judged_by": _with_current_loss(fingerprint["judged_by"])}
    return renamed


def _with_current_selections(value: Any) -> Any:
    """Rename the keys that select parameters and modules, in all tables of steps and terms, nested ones included."""
    if isinstance(value, list):
        return [_with_current_selections(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    selects = str(value.get("use", "")).startswith(_FAMILIES_WITH_SELECTIONS) or value.get("term") in _TERMS_WITH_SELECTIONS
    table = _with_keys(value, _SELECTIONS) if selects else value
    return {key: item if key == "arguments" else _in_table(key, _with_current_selections(item)) for key, item in table.items()}


def _in_table(key: str, value: Any) -> Any:
    """The value of a key; of a training with the settings that were added and change nothing."""
    trains = key == "train" and isinstance(value, Mapping) and "batch_size" in value
    return {**ADDED_TO_TRAININGS, **value} if trains else value


def _with_added(step: Any) -> Any:
    """A step with the settings that were added and change nothing that it does."""
    return {**_ADDED[step["use"]], **step} if isinstance(step, Mapping) and step.get("use") in _ADDED else step


def _with_floor(step: Any) -> Any:
    """A step that prunes with its floor: 0 where the ranking over layers of an earlier version had none, else the default."""
    if not isinstance(step, Mapping) or step.get("use") not in _FLOORS or "floor" in step:
        return step
    ranks = step.get("scope") == "global" and step.get("sparsity") is not None
    return {**step, "floor": 0.0 if ranks else _FLOORS[step["use"]]}


def _with_keys(table: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Rename keys, except where the table has the current key as well."""
    return {key if names.get(key) in table else names.get(key, key): value for key, value in table.items()}


def _with_current_module(name: str) -> str:
    for earlier, module in _MODULES.items():
        if name.startswith(f"{earlier}."):
            return module + name.removeprefix(earlier)
    return name


def _with_current_loss(words: str) -> str:
    for earlier, name in _LOSSES.items():
        if words.startswith(f"{earlier}, "):
            return name + words.removeprefix(earlier)
    return _MODULE_OF_LOSSES.sub("", words)
