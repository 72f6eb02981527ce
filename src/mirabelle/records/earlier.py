"""Resolved recipes as earlier versions wrote them, in the names of this one.

A run goes on only where its folder holds the recipe that is given now. What was renamed since is the same thing under another
name, and must not make it another run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Losses stood in fingerprints by the place of their code; now they are named as in recipes.
_LOSSES = {
    "torch.nn.functional:cross_entropy": "cross_entropy",
    "mirabelle.task.loss:CrossEntropy(classes_last=True, weights=())": "token_cross_entropy",
    "mirabelle.task.loss:Matching(variances=())": "matching",
}
_PLACE_OF_LOSSES = re.compile(r"^mirabelle\.loss:")


def in_todays_names(document: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved recipe with everything that was renamed under its present name.

    Example:
        >>> in_todays_names({"fingerprint": {"judged_by": "mirabelle.task.loss:mse, r2, 0 labels"}})
        {'fingerprint': {'judged_by': 'mse, r2, 0 labels'}}
    """
    fingerprint = document.get("fingerprint")
    if not isinstance(fingerprint, Mapping) or not isinstance(fingerprint.get("judged_by"), str):
        return dict(document)
    return {**document, "fingerprint": {**fingerprint, "judged_by": _judged_by(fingerprint["judged_by"])}}


def _judged_by(words: str) -> str:
    for earlier, name in _LOSSES.items():
        if words.startswith(f"{earlier}, "):
            return name + words.removeprefix(earlier)
    return _PLACE_OF_LOSSES.sub("", words)
