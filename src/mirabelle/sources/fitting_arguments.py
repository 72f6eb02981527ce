"""Settings of data that make them readable, or fit a model, found by trying."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirabelle.errors import UserError
from mirabelle.sources.datasets.by_name import task_from
from mirabelle.sources.datasets.image_settings import EncodedImages
from mirabelle.sources.datasets.settings import settings_from
from mirabelle.task.batch import call, tensors_of
from mirabelle.task.preprocessing.image import Image
from mirabelle.task.task import Task

_SIDES = (28, 32, 48, 64, 84, 96, 112, 128, 160, 192, 224, 256, 288, 299, 320, 384, 448, 512)
_PROPOSED: tuple[tuple[str, Any], ...] = (("kind", "unlabelled"), ("kind", "multi-label"), ("header", False))


def readable(data: str, arguments: Mapping[str, Any]) -> tuple[Task, dict[str, Any]]:
    """(task, arguments with the setting that had to be added to read the data).

    A setting is added only if the error without it proposes just that: `kind` for data without targets or with several labels
    for each sample, `header` for a table without names.

    Args:
        data: name of the data.
        arguments: settings that are known.

    Raises:
        UserError: that of the given arguments, if nothing helps.
    """
    try:
        return task_from(data, arguments, data_folder=None, folder=Path()), dict(arguments)
    except UserError as error:
        for name, value in _PROPOSED:
            if f"{name} = {json.dumps(value)}" in error.remedy and name not in arguments:
                changed = {**arguments, name: value}
                try:
                    return task_from(data, changed, data_folder=None, folder=Path()), changed
                except UserError:
                    continue
        raise


@torch.no_grad()
def fitting_images(model: nn.Module, data: str, task: Task, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with which a folder of images gives inputs that a model takes; {} if it takes them as they are, or none.

    Tried are gray and color, both orders of the axes, and the sizes that the file of the model states, or usual square sizes.

    Args:
        model: of any framework, in eval mode.
        data: name of the data.
        task: the data as they are read with `arguments`.
        arguments: known settings; they are not changed.
    """
    image = task.preprocessing
    if not isinstance(image, Image) or not isinstance(settings_from(data, arguments), EncodedImages):
        return {}
    own = {"size": list(image.size), "mode": image.mode, "layout": image.layout}
    for found in _candidates(model, image):
        if all(arguments.get(name, value) == value for name, value in found.items()) and _takes(model, **found):
            return {name: value for name, value in found.items() if value != own[name]}
    return {}


def _candidates(model: nn.Module, image: Image) -> Iterator[dict[str, Any]]:
    """Settings, from those of the data to those that differ most; sizes are those that the file states, if it does."""
    modes = sorted(("L", "RGB"), key=lambda mode: mode != image.mode)
    layouts = sorted(("channels-first", "channels-last"), key=lambda layout: layout != image.layout)
    sizes = _stated(model) or [list(image.size), *([side, side] for side in _SIDES)]
    for size, layout, mode in product(sizes, layouts, modes):
        yield {"size": size, "mode": mode, "layout": layout}


def _stated(model: nn.Module) -> list[list[int]]:
    """The sizes of images that the file of a model states, in either order of the axes."""
    example = getattr(model, "example", None)
    batch = example() if callable(example) else None
    shapes = [] if batch is None else [part.shape[1:] for part in tensors_of(batch.inputs)]
    return [list(part) for shape in shapes if len(shape) == 3 for part in (shape[1:], shape[:2])]  # noqa: PLR2004 (an image)


def _takes(model: nn.Module, size: list[int], mode: str, layout: str) -> bool:
    channels = 1 if mode == "L" else 3
    shape = (2, channels, *size) if layout == "channels-first" else (2, *size, channels)
    try:
        call(model, torch.zeros(shape))
    except Exception:  # noqa: BLE001 (whatever the code of a model raises for inputs that it does not take)
        return False
    return True
