"""Targets that are words, as numbers of classes: the same numbers in all parts of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mirabelle.errors import UserError

_FEW = 5  # names in a message
TARGETS = ("labels", "label", "targets", "target")  # the keys of the targets in dicts
_PAIR = 2  # inputs and targets


def with_numbered_classes(splits: Mapping[str, Any], labels: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Data whose targets are words with numbers in their place, and the names of the classes.

    Classes are numbered in the order of `labels`; else of the categories of a column of pandas; else of the sorted words of
    the training data. Data with other targets are returned unchanged.

    Args:
        splits: data as `Task` takes them, by name; "train" first.
        labels: names of the classes, if they are given.

    Raises:
        UserError: E131 if only some targets are words, or categories differ, E132 for a word that is no class.

    Example:
        >>> parts, names = with_numbered_classes({"train": ([[1.0], [2.0]], ["yes", "no"])}, ())
        >>> parts["train"][1].tolist(), names
        ([1, 0], ('no', 'yes'))
    """
    targets = {name: _targets(data) for name, data in splits.items()}
    words = {name: found for name, part in targets.items() if (found := _words(part)) is not None}
    if not words:
        return dict(splits), tuple(labels)
    others = [name for name, data in splits.items() if data is not None and name not in words]
    if others:
        message = f"the targets of the {' and '.join(words)} data are words, those of the {' and '.join(others)} data are not"
        raise UserError("E131", message, "give words, or numbers of classes from 0, for all of them")
    categories = {name: tuple(map(str, part.cat.categories)) for name, part in targets.items() if _is_category(part)}
    if len(set(categories.values())) > 1:
        raise UserError("E131", "the targets of the splits have different categories", "give all of them the same categories")
    names = tuple(labels) or next(iter(categories.values()), ()) or tuple(sorted(set(next(iter(words.values())))))
    numbers = {word: k for k, word in enumerate(names)}
    numbered = {name: _replaced(data, words.get(name), numbers, name) for name, data in splits.items()}
    return numbered, names


def _replaced(data: Any, words: Sequence[str] | None, numbers: Mapping[str, int], split: str) -> Any:
    """Data with numbers instead of words as targets."""
    if words is None:
        return data
    unknown = sorted(set(words) - set(numbers))
    if unknown:
        known = ", ".join(list(numbers)[:_FEW]) + (", …" if len(numbers) > _FEW else "")
        message = f'the {split} data have the class "{unknown[0]}", which is none of {known}'
        raise UserError("E132", message, "name all classes in `labels`, or leave these samples out")
    found = np.array([numbers[word] for word in words], np.int64)
    if isinstance(data, Mapping):
        return {**data, next(key for key in TARGETS if key in data): found}
    return data[0], found


def _targets(data: Any) -> Any:
    if isinstance(data, Mapping):
        return next((data[key] for key in TARGETS if key in data), None)
    return data[1] if isinstance(data, (tuple, list)) and len(data) == _PAIR else None


def _words(targets: Any) -> list[str] | None:
    """The words of targets; None for other targets."""
    if _is_category(targets):
        if bool(targets.isna().any()):
            message = f"{int(targets.isna().sum()):,} targets are missing"
            raise UserError("E131", message, "fill them, or leave these samples out")
        return [str(word) for word in targets]
    if isinstance(targets, Tensor):
        return None
    if isinstance(targets, (list, tuple)):
        found = list(targets)
    elif getattr(targets, "ndim", 0) in (1, _PAIR) and hasattr(targets, "__array__") and not hasattr(targets, "columns"):
        array = np.asarray(targets)
        if array.dtype.kind not in "OUST" or (array.ndim > 1 and array.shape[1:] != (1,)):
            return None
        found = (array.astype(str) if array.dtype.kind == "S" else array).reshape(-1).tolist()
    else:
        return None
    return found if found and all(isinstance(word, str) for word in found) else None


def _is_category(targets: Any) -> bool:
    return str(getattr(targets, "dtype", "")) == "category" and hasattr(targets, "cat")
