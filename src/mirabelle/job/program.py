"""The code that a run computes: of its models, of its loss and metrics, and of steps, terms and functions of the user's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mirabelle.errors import UserError
from mirabelle.model.program import program_of
from mirabelle.records.functions import object_from
from mirabelle.run.code import Code
from mirabelle.task.samples import Stream
from mirabelle.task.task import Task


def code_of_run(model: nn.Module, task: Task, settings: Iterable[Any], teacher: nn.Module | None = None) -> Code:
    """The code that a run computes.

    Args:
        model: to compress, as it was given.
        task: its loss, metrics, augmentation, preprocessing and generation count, and the code of a stream of data.
        settings: steps, trainings and codecs.
        teacher: as it was given.
    """
    settings = list(settings)
    named = [object_from(name, Path(), noun="function") for name in _named_in(settings)]
    parts = {
        "the model": model,
        "the teacher": teacher,
        "the loss": task.loss,
        "the metrics": [task.metric, *task.extra_metrics],
        "the data": [task.augment, task.preprocessing, task.generation, _code_of_stream(task.train)],
        "the settings": [settings, named],
    }
    return program_of({name: value for name, value in parts.items() if value is not None})


def _code_of_stream(data: Any) -> list[Any]:
    """The functions and classes from which a stream gets its samples; samples in memory are known by their digest."""
    if not isinstance(data, Stream):
        return []
    found: list[Any] = [data.loader.collate_fn, type(data.loader.sampler)]
    source: Any = data.loader.dataset
    while source is not None:
        found.append(type(source))
        source = getattr(source, "dataset", None)
    return found


def _named_in(value: Any) -> Iterator[str]:
    """The names of factories of models in settings, such as "./file.py:function"; those that are not found are left out."""
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _named_in(one)
    elif is_dataclass(value):
        for one in fields(value):
            held = getattr(value, one.name, None)
            if one.name == "model" and isinstance(held, str) and ":" in held and _is_found(held):
                yield held
            yield from _named_in(held)


def _is_found(name: str) -> bool:
    try:
        object_from(name, Path(), noun="function")
    except UserError:
        return False  # the step itself refuses it
    return True
