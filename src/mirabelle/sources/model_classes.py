"""The classes that the config.json of a transformers model names, and those of data in their order."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mirabelle.errors import UserError
from mirabelle.sources.datasets import tagged_words, texts
from mirabelle.sources.datasets.settings import place_of_data, settings_from
from mirabelle.sources.datasets.text_settings import TextFile, TokenFile
from mirabelle.sources.first_arguments import config_of

_FEW = 5  # names in a message


def class_names(config: Mapping[str, Any]) -> list[str]:
    """The names of the classes in the order of the outputs; empty for those that transformers makes up."""
    given = config.get("id2label") or {}
    try:
        names = [str(given[key]) for key in sorted(given, key=int)]
    except ValueError:
        return []
    return [] if names == [f"LABEL_{k}" for k in range(len(names))] else names


def labels_of_texts(model: str, data: str, read: Mapping[str, Any]) -> dict[str, list[str]]:
    """The setting `labels` of texts with classes, or of tagged words, in the order of a model; {} for others.

    Args:
        model: its folder.
        data: file of texts.
        read: how it is read.

    Raises:
        UserError: E132 if some classes of the data, but not all of them, are none of the model.
    """
    place, settings = place_of_data(data), settings_from(data, read)
    try:
        if place is not None and isinstance(settings, TextFile):
            own: tuple[str, ...] = texts.classes_of(place, settings)
        else:
            own = tagged_words.tags_of(place) if place is not None and isinstance(settings, TokenFile) else ()
    except UserError:  # `check` tells it with its place in the recipe
        return {}
    return labels_in_order(config_of(model), own, f"{data} has the class", "correct these rows, or leave them out")


def labels_in_order(config: Mapping[str, Any], own: Collection[str], found: str, remedy: str) -> dict[str, list[str]]:
    """The setting `labels`: the classes of data in the order of the model's outputs, with those that the data lack.

    Case does not matter. The setting is left out if the config names no classes, or none of those of the data.

    Args:
        config: config.json.
        own: classes of the data, as the data write them.
        found: beginning of a message that names a class.
        remedy: what to do about it.

    Raises:
        UserError: E132 if some classes of the data, but not all of them, are none of the model.

    Example:
        >>> labels_in_order({"id2label": {"0": "positive", "1": "negative"}}, ["Negative"], "", "")
        {'labels': ['positive', 'Negative']}
    """
    names, written = class_names(config), {name.casefold(): name for name in own}
    other = sorted(set(written) - {name.casefold() for name in names})
    if not names or len(other) == len(written):
        return {}
    if other:
        few = ", ".join(names[:_FEW]) + (", …" if len(names) > _FEW else "")
        raise UserError("E132", f'{found} "{written[other[0]]}", which is no class of the model: {few}', remedy)
    return {"labels": [written.get(name.casefold(), name) for name in names]}
