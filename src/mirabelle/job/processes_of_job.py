"""A job that several processes compute: the first leads it, the others take part in its trainings and evaluations."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from mirabelle.errors import UserError
from mirabelle.model.state import fingerprint
from mirabelle.run.group import Group, LedElsewhereError
from mirabelle.run.process_group import joined
from mirabelle.run.run import differences
from mirabelle.task.batch import tensors_of
from mirabelle.task.indexed import Indexed
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task

T = TypeVar("T")
_SPLITS = ("train", "validation", "test")
_PLAIN = (str, int, float, bool, type(None))


def led_by_first(task: Task, document: Mapping[str, Any], work: Callable[[], T]) -> T:
    """The result of a job, which only the first of several processes does; the others take part, and get the result, too.

    In the others, the result is None if it cannot be pickled.

    Args:
        task: whose data every process has read.
        document: what the job is, as plain data; it must be the same in every process.
        work: does the job.

    Raises:
        UserError: E111 if another process has another job.
        LedElsewhereError: in a process that is not the first, if the first has failed.
    """
    group = joined()
    if group is None or group.has_followers:
        return work()
    objects = objects_of(task)
    with group.explaining():
        _check_same(group, json.loads(json.dumps(document)))
        threads = group.share(torch.get_num_threads())
    if group.leads:
        return group.lead(objects, work)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found: T = group.follow(objects)
    finally:
        torch.set_num_threads(before)
    return found


def identity_of(model: nn.Module, task: Task, **settings: Any) -> dict[str, Any]:
    """What a job is, as plain data.

    Args:
        model: to compress.
        task: its data.
        settings: of the job, as plain data.
    """
    return {**settings, "fingerprint": {"model": fingerprint(model), "data": task.fingerprint()}}


def _check_same(group: Group, document: dict[str, Any]) -> None:
    """Raise unless all processes have the same job, in all of them."""
    first = group.share(document)
    different = group.share([one for one in enumerate(group.gather(differences(first, document))) if one[1]])
    if different:
        rank, text = different[0]
        message = f"process {rank} has another recipe, model or data than the first: {text.replace(' there', ' in the first')}"
        kind = UserError if group.leads else LedElsewhereError
        raise kind("E111", message, "start all processes with the same command, files and data")


def objects_of(task: Task) -> dict[str, object]:
    """What every process has of a task, by name: the data, which are not sent, and functions of the user."""
    fields = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    found = {f"task.{name}": one for name, one in fields.items() if not isinstance(one, (*_PLAIN, tuple)) and name != "teacher"}
    for split in _SPLITS:
        data = fields[split]
        if isinstance(data, Samples):
            found[f"{split}.targets"] = data.targets
            if isinstance(data, Indexed):
                found[f"{split}.read"] = data.read
            else:
                found |= {f"{split}.inputs.{k}": one for k, one in enumerate(tensors_of(data.inputs))}
    return found
