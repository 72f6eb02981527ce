"""Validation and test data out of the training data, where a source does not bring its own: the same ones every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from mirabelle.errors import UserError
from mirabelle.task.batch import Samples
from mirabelle.task.loss import CrossEntropy, Loss, balanced
from mirabelle.task.outputs import DEFAULTS, Form, form_of_targets
from mirabelle.task.preprocessing.image import Image
from mirabelle.task.preprocessing.sound import Sound
from mirabelle.task.preprocessing.table import Table
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.settings import Divided

Indices: TypeAlias = npt.NDArray[np.int64]
Split: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[Any]]  # inputs, targets
TEST_FRACTION, VALIDATION_FRACTION = 0.2, 0.1


def completed(
    splits: Mapping[str, Split],
    test_fraction: float | None,
    validation_fraction: float | None,
    seed: int,
    labels: Sequence[str] = (),
) -> dict[str, Split]:
    """The splits with "test" and "validation", drawn from "train" where they are not there.

    Args:
        splits: (inputs, targets) by name, "train" among them.
        test_fraction: of the training data, in (0, 1); by default 0.2, None where the split is there.
        validation_fraction: the same, by default 0.1.
        seed: of the draw.
        labels: names of the classes; with them every class is divided in the same proportion and occurs in each split.

    Raises:
        UserError: E110 fractions that leave nothing, E111 one for a split that is there, E131 too few samples to divide.
    """
    asked = {"test": (test_fraction, TEST_FRACTION), "validation": (validation_fraction, VALIDATION_FRACTION)}
    fractions = {}
    for name, (given, default) in asked.items():
        if name in splits and given is not None:
            message = f"{name}_fraction = {given} is given, but the data bring {name} data of their own"
            raise UserError("E111", message, f"leave out {name}_fraction")
        if name not in splits:
            fractions[name] = default if given is None else given
    if sum(fractions.values()) >= 1:
        raise UserError("E110", f"test and validation fractions must add up to less than 1; got {fractions}", "leave some")
    if not fractions:
        return dict(splits)
    inputs, targets = splits["train"]
    groups = {f'class "{label}"': np.flatnonzero(targets == k) for k, label in enumerate(labels)}
    parts = _divided(groups or {"the training data": np.arange(len(targets))}, fractions, seed)
    return {**splits, **{name: (inputs[index], targets[index]) for name, index in parts.items()}}


def as_task(
    splits: Mapping[str, Split],
    labels: tuple[str, ...],
    name: str,
    preprocessing: Image | Sound | Table | None,
    settings: Divided,
) -> Task:
    """The task of the three splits, scaled by `preprocessing`: a classification where there are labels, else a regression.

    Targets of several labels a sample, (samples, labels), make a task of many yes or no; those of no numbers, (samples, 0), one
    without labels.
    """
    targets = torch.from_numpy(splits["train"][1])
    form = form_of_targets(targets, labels)
    loss: str | Loss
    loss, metric = DEFAULTS[form]
    if settings.class_weights == "balanced":
        if form is not Form.CLASSES or settings.loss:
            message = "class_weights are for one class a sample, and the loss of that"
            raise UserError("E111", message, "leave them out", path=("class_weights",))
        loss = CrossEntropy(weights=balanced(targets, len(labels)))
    scaled = {part: x if preprocessing is None else preprocessing.scaled(x) for part, (x, _) in splits.items()}
    ready = {
        part: Samples(torch.from_numpy(scaled[part]), None if form is Form.MATCHED else torch.from_numpy(y))
        for part, (_, y) in splits.items()
    }
    return Task(
        train=ready["train"],
        validation=ready["validation"],
        test=ready["test"],
        loss=settings.loss or loss,
        metric=settings.metric or metric,
        extra_metrics=settings.extra_metrics,
        labels=labels,
        name=name,
        preprocessing=preprocessing,
    )


def _divided(groups: Mapping[str, Indices], fractions: Mapping[str, float], seed: int) -> dict[str, Indices]:
    """Indices by split; each group gives at least one to each split, and "train" the rest, all in random order."""
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Indices]] = {name: [] for name in ("train", *fractions)}
    for group, members in groups.items():
        least = len(fractions) + 1
        if 0 < len(members) < least:
            counted = f"{len(members)} sample{'s' if len(members) > 1 else ''}"
            raise UserError("E131", f"{group} has {counted}; dividing it needs {least}", "add samples, or bring splits")
        rest = members[torch.randperm(len(members), generator=generator).numpy()]
        for position, (name, fraction) in enumerate(fractions.items()):
            most = len(rest) - (len(fractions) - position)  # one each for the splits to come, and for training
            count = max(min(round(fraction * len(members)), most), min(1, len(members)))
            parts[name].append(rest[:count])
            rest = rest[count:]
        parts["train"].append(rest)
    joined = {name: np.concatenate(indices) for name, indices in parts.items()}
    return {name: index[torch.randperm(len(index), generator=generator).numpy()] for name, index in joined.items()}
