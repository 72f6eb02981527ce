"""Tabular data: read a .csv file with a header, or a .parquet file, with numeric columns and one target column."""

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

_MOST_CLASSES = 20  # a target column with more different numbers is a regression


def task_of(path: Path, settings: TableFile) -> Task:
    """The task of a table; the errors are those of `TableFile`."""
    rows = read_rows(path) if path.suffix.lower() != ".parquet" else _of_parquet(path)
    target = settings.target if settings.target is not None else rows.columns[-1]
    for name in (target, *settings.ignore):
        if name not in rows.columns:
            raise UserError("E110", f'{path} has no column "{name}"', did_you_mean(name, rows.columns))
    columns = tuple(name for name in rows.columns if name != target and name not in settings.ignore)
    if not columns or target in settings.ignore:
        raise UserError("E131", f'{path} has no column left from which to predict "{target}"', "give at least one other column")
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
    """The rows of a .parquet file as text, as in a .csv file."""
    columns = read_parquet(path)
    cells = [["" if value is None else str(value) for value in row] for row in zip(*columns.values(), strict=True)]
    if not cells:
        raise UserError("E130", f"{path} has no rows", "give at least one")
    return Rows(path, list(columns), cells, range(1, len(cells) + 1))


def _targets(
    rows: Rows, target: str, kind: Literal["classification", "regression"] | None
) -> tuple[tuple[str, ...], np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    """(labels, class indices (rows,)) for a classification, or ((), numbers (rows, 1)) for a regression."""
    texts = rows.texts(target)
    if "" in texts:
        place = f'{rows.path}, line {rows.lines[texts.index("")]}, column "{target}"'
        raise UserError("E131", f"{place}: the cell is empty", "add the target, or remove the row")
    labels = _labels(texts)
    if kind == "regression" or (kind is None and labels is None):
        with np.errstate(over="ignore"):  # the task refuses infinite targets
            return (), rows.numbers([target]).astype(np.float32)
    labels = labels or tuple(sorted(set(texts), key=lambda text: (len(text), text)))
    if len(labels) < 2:  # noqa: PLR2004 (a classification needs two classes)
        message = f'{rows.path}: column "{target}" is "{labels[0]}" in every row'
        raise UserError("E131", message, "give rows of another class")
    numbers = {label: k for k, label in enumerate(labels)}
    return labels, np.array([numbers[text if text in numbers else _whole(text)] for text in texts], np.int64)


def _labels(texts: Sequence[str]) -> tuple[str, ...] | None:
    """The sorted names of the classes in a column; None if the column contains quantities.

    Example:
        >>> _labels(["yes", "no", "yes"]), _labels(["2", "10", "2.0"]), _labels(["0.5", "1"])
        (('no', 'yes'), ('2', '10'), None)
    """
    different = sorted(set(texts))
    numbers = {number for text in different if (number := _number(text)) is not None}
    if len(numbers) > _MOST_CLASSES:
        return None  # then a text among many numbers is reported as an error, and does not become a class
    if any(_number(text) is None for text in different):
        return tuple(different)
    return tuple(str(int(number)) for number in sorted(numbers)) if all(map(float.is_integer, numbers)) else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _whole(text: str) -> str:
    """The shortest spelling of an integer: "1" for "1.0"."""
    return str(int(float(text)))
