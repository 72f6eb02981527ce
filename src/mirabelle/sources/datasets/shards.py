"""Images in tar files, as WebDataset has them: read by their positions in the shards, in any order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError, did_you_mean
from mirabelle.sources.datasets.folders import Kind, unread_files
from mirabelle.sources.datasets.images import divided, opened
from mirabelle.sources.datasets.places import Place
from mirabelle.sources.datasets.shard_index import Listed, Sample, listed
from mirabelle.sources.datasets.shard_names import above, by_split, shards_at
from mirabelle.sources.datasets.unreadable import SKIP, with_way_out
from mirabelle.sources.datasets.workers import Workers
from mirabelle.sources.names import SHARD
from mirabelle.task.preprocessing.pictures import Header
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.image_settings import TarShards

_KIND = Kind("shard", "shards", (SHARD,))
_FEW = 5  # names in a message
_MOST_CLASSES = 1_000_000


def task_of(path: Path, settings: TarShards) -> Task:
    """The task of a folder or of a range of shards; the errors are those of `TarShards`."""
    folder = above(path)
    asked = {"validation": settings.validation, "test": settings.test}
    named = {part: shards_at(folder / name) for part, name in asked.items() if name is not None}
    apart = {shard.resolve() for own in named.values() for shard in own}
    others = [shard for shard in shards_at(path) if shard.resolve() not in apart]
    if not others:
        message = f"all shards at {path} are for validation or test"
        raise UserError("E131", message, "name other ones as `validation` and `test`")
    shards = {**by_split(others, folder), **named}
    found = {part: _all_listed(own, settings) for part, own in shards.items()}
    samples = {part: [sample for one in own for sample in one.samples] for part, own in found.items()}
    empty = next((part for part, own in samples.items() if not own), None)
    if empty is not None:
        message = f"the shards of the {empty} data contain no sample with an image, the first is {shards[empty][0]}"
        raise UserError("E131", message, "a sample is an image, such as 1.jpg, and its class, 1.cls or 1.json")
    if settings.kind == "unlabelled":
        labels: tuple[str, ...] = ()
        targets: dict[str, npt.NDArray[Any]] = {part: np.zeros((len(own), 0), np.float32) for part, own in samples.items()}
    else:
        labels = _labels(samples, settings.labels)
        numbers: Mapping[Any, int] = {name: k for k, name in enumerate(labels)}
        targets = {part: np.array([_number(one, numbers, labels) for one in own]) for part, own in samples.items()}
    places: dict[str, list[Place]] = {part: [one.image for one in own] for part, own in samples.items()}
    known: dict[Place, Header] = {one.image: one.header for own in samples.values() for one in own if one.header is not None}
    notes = _notes([one for own in found.values() for one in own])
    if path.is_dir():
        notes += unread_files(folder, {one for own in shards.values() for one in own}, _KIND)
    name = folder.resolve().name
    return divided(opened(places, settings, known), targets, labels, settings, groups=labels, name=name, notes=notes)


def _all_listed(shards: Sequence[Path], settings: TarShards) -> list[Listed]:
    """The samples of some shards, which are listed by several threads."""
    found: list[Listed | None] = [None] * len(shards)

    def work(part: range) -> None:
        for k in part:
            found[k] = one = listed(shards[k], settings)
            if one.damage is not None and not settings.skip_unreadable:
                raise with_way_out(one.damage)

    Workers(settings.workers).do(work, len(shards))
    return [one for one in found if one is not None]


def _labels(samples: Mapping[str, Sequence[Sample]], given: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the classes: those that are given, or the numbers up to the largest, or all names in order."""
    every = [one for own in samples.values() for one in own]
    kinds = {type(one.label) for one in every}
    if len(kinds) > 1:
        number, name = (next(one for one in every if isinstance(one.label, kind)) for kind in (int, str))
        message = f'{number.image} has the number of a class, {number.label}, {name.image} a name, "{name.label}"'
        raise UserError("E131", message, "write numbers for all samples, or names")
    seen = {one.label for one in every}
    if len(seen) < 2 and not given:  # noqa: PLR2004 (a classification needs two classes)
        raise UserError("E131", f"all samples have the class {next(iter(seen))}", 'add other classes, or kind = "unlabelled"')
    if given:
        return given
    if kinds == {str}:
        return tuple(sorted(map(str, seen)))
    largest = max(one for one in seen if isinstance(one, int))
    if largest >= _MOST_CLASSES:
        where = next(one.image for one in every if one.label == largest)
        raise UserError(
            "E131", f"{where} has the class {largest}; at most {_MOST_CLASSES:,} are numbered", "write classes from 0"
        )
    return tuple(map(str, range(largest + 1)))


def _number(sample: Sample, numbers: Mapping[Any, int], labels: Sequence[str]) -> int:
    """The number of the class of a sample."""
    label = sample.label
    number = label if isinstance(label, int) else numbers.get(label, len(labels))
    if number >= len(labels):
        named = ", ".join(labels[:_FEW]) + (", …" if len(labels) > _FEW else "")
        message = f'{sample.image} has the class "{label}", which is not in `labels`: {named}'
        remedy = did_you_mean(label, labels) if isinstance(label, str) else f"name all classes, from 0 to {label}"
        raise UserError("E131", message, remedy)
    return number


def _notes(found: Sequence[Listed]) -> list[str]:
    without = sum(one.without_image for one in found)
    notes = [f"Samples of the shards without an image are left out: {without:,}."] if without else []
    damaged = [one.damage.message for one in found if one.damage is not None]
    if damaged:
        notes.append(
            f"{len(damaged):,} of {len(found):,} shards are damaged; what is behind is left out ({SKIP}): {damaged[0]}."
        )
    return notes
