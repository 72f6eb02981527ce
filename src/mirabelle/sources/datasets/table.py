"""A .csv file with a header, or a .parquet file: columns of numbers, and one column to predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from mirabelle.errors import UserError, did_you_mean
from mirabelle.sources.datasets.parquet import read_parquet
from mirabelle.sources.datasets.splits import Split, as_task, completed
from mirabelle.task.preprocessing.table import Rows, Table, mean_and_deviation, read_rows
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.settings import TableFile

_MOST_CLASSES = 20  # whole numbers of more different values count as quantities


def task_of(path: Path, settings: TableFile) -> Task:
    """The task that a file gives; errors as `TableFile` tells them."""
    rows = read_rows(path) if path.suffix.lower() != ".parquet" else _of_parquet(path)
    target = settings.target if settings.target is not None else rows.columns[-1]
    for name in (target, *settings.ignore):
        if name not in rows.columns:
            raise UserError("E110", f'{path} has no column "{name}"', did_you_mean(name, rows.columns))
    columns = tuple(name for name in rows.columns if name != target and name not in settings.ignore)
    if not columns or target in settings.ignore:
        raise UserError("E131", f'{path} leaves no column to predict "{target}" from', "give at least one other column")
    labels, targets = _targets(rows, target, settings.kind)
    try:
        whole: dict[str, Split] = {"train": (rows.numbers(columns), targets)}
        splits = completed(whole, settings.test_fraction, settings.validation_fraction, settings.seed, labels)
        mean, deviation = mean_and_deviation(splits["train"][0])
        table = Table(columns=columns, mean=mean, deviation=deviation)
    except UserError as error:
        raise error if str(path) in error.message else error.at(str(path)) from None
    return as_task(splits, labels, path.stem, table, settings)


def _of_parquet(path: Path) -> Rows:
    """Rows as they would stand in a .csv."""
    columns = read_parquet(path)
    cells = [["" if value is None else str(value) for value in row] for row in zip(*columns.values(), strict=True)]
    if not cells:
        raise UserError("E130", f"{path} has no row", "give at least one")
    return Rows(path, list(columns), cells, range(1, len(cells) + 1))


def _targets(
    rows: Rows, target: str, kind: Literal["classification", "regression"] | None
) -> tuple[tuple[str, ...], np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    """(labels, classes (rows,)), or no labels and numbers (rows, 1)."""
    texts = rows.texts(target)
    if "" in texts:
        place = f'{rows.path}, line {rows.lines[texts.index("")]}, column "{target}"'
        raise UserError("E131", f"{place}: the cell is empty", "write the target, or leave out the row")
    labels = _labels(texts)
    if kind == "regression" or (kind is None and labels is None):
        with np.errstate(over="ignore"):  # what is infinite is refused by the task
            return (), rows.numbers([target]).astype(np.float32)
    labels = labels or tuple(sorted(set(texts), key=lambda text: (len(text), text)))
    if len(labels) < 2:  # noqa: PLR2004 (something to choose between)
        raise UserError("E131", f'{rows.path}: column "{target}" always says "{labels[0]}"', "give rows of another class")
    numbers = {label: k for k, label in enumerate(labels)}
    return labels, np.array([numbers[text if text in numbers else _whole(text)] for text in texts], np.int64)


def _labels(texts: Sequence[str]) -> tuple[str, ...] | None:
    """The names of the classes that a column stands for, sorted; None where it holds quantities.

    Example:
        >>> _labels(["yes", "no", "yes"]), _labels(["2", "10", "2.0"]), _labels(["0.5", "1"])
        (('no', 'yes'), ('2', '10'), None)
    """
    different = sorted(set(texts))
    numbers = {number for text in different if (number := _number(text)) is not None}
    if len(numbers) > _MOST_CLASSES:
        return None  # so that a text among many numbers is named, not made a class
    if any(_number(text) is None for text in different):
        return tuple(different)
    return tuple(str(int(number)) for number in sorted(numbers)) if all(map(float.is_integer, numbers)) else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _whole(text: str) -> str:
    """A whole number as it is written shortest: "1.0" as "1"."""
    return str(int(float(text)))
