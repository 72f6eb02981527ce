"""Split validation and test data off the training data if a source has none of its own; the split is reproducible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mirabelle.errors import UserError
from mirabelle.numerics.arrays import to_numpy
from mirabelle.numerics.draws import generator_from
from mirabelle.task.indexed import Cost, Indexed
from mirabelle.task.loss import CrossEntropy, Loss, balanced
from mirabelle.task.outputs import DEFAULTS, Form, form_of_targets
from mirabelle.task.preprocessing.image import Image
from mirabelle.task.preprocessing.kaldi import Kaldi
from mirabelle.task.preprocessing.sound import Sound
from mirabelle.task.preprocessing.table import Table
from mirabelle.task.preprocessing.waveform import Waveform
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.divided import Divided

Indices: TypeAlias = npt.NDArray[np.int32]  # no table has more rows than that; half the memory of int64
Split: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[Any]]  # inputs, targets
Row = TypeVar("Row")


@dataclass(frozen=True)
class Unread:
    """Inputs that are read when they are needed, and their targets.

    Args:
        read: positions -> raw inputs, before they are scaled.
        targets: (samples, ...).
        identity: of the inputs.
        cost: number of samples -> how so many of them are read, and what it costs; by default it is measured.
    """

    read: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
    targets: npt.NDArray[Any]
    identity: str
    cost: Cost | None = None


TEST_FRACTION, VALIDATION_FRACTION = 0.2, 0.1


class Indexable(Protocol):
    """Rows of inputs: an array, or what takes the place of one."""

    def __getitem__(self, index: Any) -> Any:
        """Some of the rows."""


Rows = TypeVar("Rows", bound=Indexable)


def completed(
    splits: Mapping[str, tuple[Rows, npt.NDArray[Any]]],
    test_fraction: float | None,
    validation_fraction: float | None,
    seed: int,
    labels: Sequence[str] = (),
) -> dict[str, tuple[Rows, npt.NDArray[Any]]]:
    """The splits "train", "validation" and "test"; missing ones are drawn from "train".

    Args:
        splits: (inputs, targets) by name, with at least "train".
        test_fraction: fraction of the training data for "test", in (0, 1); by default 0.2. Must be None if the split exists.
        validation_fraction: the same for "validation", by default 0.1.
        seed: of the random split.
        labels: names of the classes; if given, every class is split in the same proportion (stratified).

    Raises:
        UserError: E110 if the fractions leave no training data, E111 if a fraction is given for a split that exists, E131 if
            there are too few samples.
    """
    asked = {"test": (test_fraction, TEST_FRACTION), "validation": (validation_fraction, VALIDATION_FRACTION)}
    fractions = {}
    for name, (given, default) in asked.items():
        if name in splits and given is not None:
            message = f"{name}_fraction = {given} is given, but the source has {name} data of its own"
            raise UserError("E111", message, f"leave out {name}_fraction")
        if name not in splits:
            fractions[name] = default if given is None else given
    if sum(fractions.values()) >= 1:
        message = f"test and validation fractions must add up to less than 1; got {fractions}"
        raise UserError("E110", message, "leave some samples for training")
    if not fractions:
        return dict(splits)
    inputs, targets = splits["train"]
    groups = {f'class "{label}"': np.flatnonzero(targets == k).astype(np.int32) for k, label in enumerate(labels)}
    parts = _divided(groups or {"the training data": np.arange(len(targets), dtype=np.int32)}, fractions, seed)
    return {**splits, **{name: (inputs[index], targets[index]) for name, index in parts.items()}}


def rows_by_split(rows: Mapping[str, Sequence[Row]], settings: Divided, path: Path) -> dict[str, list[Row]]:
    """The rows of the splits "train", "validation" and "test"; missing ones are drawn from "train", in random order.

    Args:
        rows: by split, with at least "train".
        settings: give the fractions and the seed.
        path: of the file, for messages.

    Raises:
        UserError: as `completed`.
    """
    positions: dict[str, Split] = {part: (np.arange(len(own)), np.zeros(len(own), np.int64)) for part, own in rows.items()}
    try:
        splits = completed(positions, settings.test_fraction, settings.validation_fraction, settings.seed)
    except UserError as error:
        raise error.at(str(path)) from None
    return {part: [rows[part if part in rows else "train"][k] for k in index] for part, (index, _) in splits.items()}


def as_task(
    splits: Mapping[str, Split] | Mapping[str, Unread],
    labels: tuple[str, ...],
    name: str,
    preprocessing: Image | Sound | Waveform | Kaldi | Table | None,
    settings: Divided,
    *,
    loss: Loss | None = None,
    notes: Sequence[str] = (),
) -> Task:
    """The task of three splits, with inputs scaled by `preprocessing`; those of a table are scaled already.

    Args:
        splits: (inputs, targets) of "train", "validation" and "test", or inputs that are read when they are needed. Targets of
            shape (samples, labels) together with `labels` make a multi-label task; targets of shape (samples, 0) a task without
            labels.
        labels: names of the classes or labels; without them the task is a regression.
        name: of the task.
        preprocessing: scales the inputs; None leaves them unchanged.
        settings: give loss, metrics and class weights.
        loss: the loss, unless the settings name a function; by default that of the targets.
        notes: sentences on what was left out while the data were read.

    Raises:
        UserError: E111 if class weights are given for a task that is not a classification with one class for each sample.
    """
    own_targets = {part: torch.from_numpy(one.targets if isinstance(one, Unread) else one[1]) for part, one in splits.items()}
    targets = own_targets["train"]
    form = form_of_targets(targets, labels)
    chosen: str | Loss = loss or settings.loss or DEFAULTS[form][0]
    if settings.class_weights == "balanced":
        if form is not Form.CLASSES or settings.loss:
            message = "class_weights need a classification with one class for each sample, and its default loss"
            raise UserError("E111", message, "leave them out", path=("class_weights",))
        chosen = CrossEntropy(weights=balanced(targets, len(labels)))
    scaled = (lambda x: x) if preprocessing is None or isinstance(preprocessing, Table) else preprocessing.scaled
    ready: dict[str, Samples] = {}
    for part, one in splits.items():
        labelled = None if form is Form.MATCHED else own_targets[part]
        if isinstance(one, Unread):
            ready[part] = Indexed(
                partial(_read, one, scaled),
                labelled,
                f"{one.identity} {preprocessing}",
                count=len(one.targets),
                read_ahead=True,
                cost=one.cost,
            )
        else:
            ready[part] = Samples(torch.from_numpy(scaled(one[0])), labelled)
    return Task(
        train=ready["train"],
        validation=ready["validation"],
        test=ready["test"],
        loss=chosen,
        metric=settings.metric,
        extra_metrics=settings.extra_metrics,
        outputs_are=settings.outputs_are,
        labels=labels,
        name=name,
        preprocessing=preprocessing,
        notes=notes,
    )


def _read(given: Unread, scaled: Callable[[npt.NDArray[Any]], npt.NDArray[Any]], index: Tensor) -> Tensor:
    return torch.from_numpy(scaled(given.read(to_numpy(index))))


def _divided(groups: Mapping[str, Indices], fractions: Mapping[str, float], seed: int) -> dict[str, Indices]:
    """The indices by split, in random order; each group gives at least one index to each split, and the rest to "train"."""
    generator = generator_from(seed)
    parts: dict[str, list[Indices]] = {name: [] for name in ("train", *fractions)}
    for group, members in groups.items():
        least = len(fractions) + 1
        if 0 < len(members) < least:
            counted = f"{len(members)} sample{'s' if len(members) > 1 else ''}"
            raise UserError("E131", f"{group} has {counted}; a split needs {least}", "add samples, or give separate splits")
        rest = members[to_numpy(torch.randperm(len(members), generator=generator))]
        for position, (name, fraction) in enumerate(fractions.items()):
            most = len(rest) - (len(fractions) - position)  # leaves one for each of the following splits and for training
            count = max(min(round(fraction * len(members)), most), min(1, len(members)))
            parts[name].append(rest[:count])
            rest = rest[count:]
        parts["train"].append(rest)
    joined = {name: np.concatenate(indices) for name, indices in parts.items()}
    return {name: index[to_numpy(torch.randperm(len(index), generator=generator))] for name, index in joined.items()}
