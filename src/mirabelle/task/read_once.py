"""What is lost when data sets and loaders are read into memory once: random changes of their samples, and samples left out."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mirabelle.numerics.draws import global_draws
from mirabelle.task.samples import Samples, Stream

_TWICE = 16  # samples that are read twice


def notes_on_reading(given: Mapping[str, Any], found: Mapping[str, Samples | Stream]) -> tuple[str, ...]:
    """Sentences on data sets and loaders that were read into memory: frozen augmentation, samples left out or repeated.

    Some samples are read twice more; the generators of Python, NumPy and torch are as before afterwards.

    Args:
        given: data as they were given, by the name of the split.
        found: the same data as they are used; streams are left alone.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.randn(30, 2), torch.randint(0, 2, (30,)))
        >>> notes_on_reading({"test": DataLoader(data, 8, drop_last=True)}, {"test": Samples(torch.zeros(24, 2))})
        ('The loader of the test data gives 24 of the 30 samples of its data set.',)
    """
    return tuple(
        note for name, source in given.items() if isinstance(found[name], Samples) for note in _of(name, source, found)
    )


def _of(name: str, source: Any, found: Mapping[str, Samples | Stream]) -> Iterator[str]:
    loads = isinstance(source, DataLoader)
    data = source.dataset if loads else source
    if not loads and not isinstance(data, Dataset) and not hasattr(data, "column_names"):
        return
    seen, drawn, total = min(_TWICE, len(data)), len(found[name]), len(data)
    changed = _changed(data, seen)
    if changed:
        what = f"{changed} of {seen} samples that were read twice differ"
        remedy = (
            "every epoch sees the same values. A DataLoader with shuffle=True is read again in every epoch"
            if name == "train"
            else "all models are judged on the values of one reading"
        )
        yield f"The {name} data change each time they are read ({what}). They are read once: {remedy}."
    if loads and getattr(source.sampler, "replacement", False):
        yield f"The loader of the {name} data draws with replacement: some samples count several times, others not at all."
    elif drawn < total:
        yield f"The loader of the {name} data gives {drawn:,} of the {total:,} samples of its data set."


def _changed(data: Any, count: int) -> int:
    """How many of the first samples are not the same when they are read again."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (that of the user's data set)
    try:
        with global_draws():
            return sum(not _same(data[k], data[k]) for k in range(count))
    except Exception:  # noqa: BLE001 (a data set that is read only once, or in batches)
        return 0
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(part, other[key]) for key, part in one.items())
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Tensor):
        return one.shape == other.shape and bool(torch.equal(one, other))
    if hasattr(one, "__array__"):
        return np.array_equal(np.asarray(one), np.asarray(other))
    return bool(one == other)
