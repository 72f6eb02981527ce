"""Whether two tasks have the same samples, for tests of data in memory and of the same data that are read when needed."""

from __future__ import annotations

from pathlib import Path

import torch

from mirabelle import Task
from mirabelle.sources import task_from

SPLITS = ("train", "validation", "test")


def task(path: Path, **arguments: object) -> Task:
    """The task of a file or folder."""
    return task_from(f"./{path.name}", arguments, data_folder=None, folder=path.parent)


def same(one: Task, other: Task, *, notes: bool = False) -> None:
    """Check that the samples and what is known of them are the same, also the notes if these do not say how data are read."""
    assert (one.preprocessing, one.labels) == (other.preprocessing, other.labels)
    assert one.notes == other.notes or not notes
    for name in SPLITS:
        here, there = getattr(one, name), getattr(other, name)
        assert torch.equal(here.inputs, there.inputs)
        assert torch.equal(here.targets, there.targets)
