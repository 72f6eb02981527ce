"""Tabular data: read .csv or .parquet files with columns of numbers, categories and dates, and one target column."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mirabelle.errors import UserError, did_you_mean
from mirabelle.run.files import digest
from mirabelle.sources.datasets.encoded import encoded
from mirabelle.sources.datasets.folders import unread_files
from mirabelle.sources.datasets.parquet import KIND, ParquetTable
from mirabelle.sources.datasets.row_file import RowFile
from mirabelle.sources.datasets.splits import Split, Unread, as_task, completed
from mirabelle.sources.datasets.table_columns import MOST_CLASSES, Indices, Kind, kinds_of, learned_table
from mirabelle.task.indexed import IN_MEMORY
from mirabelle.task.loss import Standardized
from mirabelle.task.preprocessing import scaling
from mirabelle.task.preprocessing.cells import number_of
from mirabelle.task.preprocessing.columns import Column, Source, Values
from mirabelle.task.preprocessing.delimited import Delimited, Habits, read_rows
from mirabelle.task.preprocessing.table import Table, mean_and_deviation, shortest, words_of
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.settings import TableFile

_FLOAT_BYTES, _AT_ONCE = 4, 1 << 16  # rows that are looked at together
_KEPT_CELLS = 4_000_000  # tables with at most so many cells keep their columns while they are read
_REMEDY = "add the target, or remove the row"


def task_of(path: Path, settings: TableFile) -> Task:
    """The task of a table; the errors are those of `TableFile`."""
    try:
        return _task(_source(path, settings), settings)
    except UserError as error:
        raise error if str(path) in error.message else error.at(str(path)) from None


def _task(source: Source, settings: TableFile) -> Task:
    names, path = source.names, source.path
    target = settings.target if settings.target is not None else names[-1]
    for name in (target, *settings.ignore, *settings.categories, *settings.embed):
        if name not in names:
            raise UserError("E110", f'{path} has no column "{name}"', did_you_mean(name, names))
    columns = [name for name in names if name not in (target, *settings.ignore) and name]
    if not columns or target in settings.ignore:
        raise UserError("E131", f'{path} has no column left from which to predict "{target}"', "give at least one other column")
    kinds = kinds_of(source, [*columns, target], settings)
    labels, splits = _splits(source, target, kinds.pop(target), settings)
    habits = Habits(header=settings.header, separator=settings.separator, encoding=settings.encoding, missing=settings.missing)
    if settings.header is False:
        habits = dataclasses.replace(habits, count=len(names), target=target)
    table, notes = learned_table(source, kinds, splits["train"][0], settings, habits)
    if "" in names:
        notes.append("The first column has no name and numbers the rows; it is left out.")
    if path.is_dir():
        notes += unread_files(path, source.paths, KIND)
    loss = None if labels or not settings.scale_target else _standardized(splits["train"][1], settings.loss or "mse")
    large = len(source) * table.shape[0] * _FLOAT_BYTES > IN_MEMORY
    ready = _unread(source, table, splits) if large else _whole(source, table, splits)
    return as_task(ready, labels, path.stem or path.resolve().name, table, settings, loss=loss, notes=notes)


def _whole(source: Source, table: Table, splits: dict[str, Split]) -> dict[str, Split]:
    """All inputs, in memory."""
    inputs = _inputs(source, table, {part: rows for part, (rows, _) in splits.items()})
    return {part: (inputs[part], y) for part, (_, y) in splits.items()}


def _unread(source: Source, table: Table, splits: dict[str, Split]) -> dict[str, Unread]:
    """Inputs that would need much memory: they are encoded once, and read when they are needed."""
    rows, identity = encoded(source, table)
    return {
        part: Unread(partial(_chosen, rows, index), y, f"{identity} {digest(index.tobytes())}")
        for part, (index, y) in splits.items()
    }


def _chosen(rows: RowFile, index: Indices, own: Indices) -> npt.NDArray[np.float32]:
    return rows.read(index[own])


def _standardized(targets: npt.NDArray[np.generic], loss: str) -> Standardized | None:
    """The loss in units of the training targets' deviation; None for a loss of the user, or where no unit can be found."""
    if loss not in ("mse", "mae", "huber"):
        return None
    (mean,), (deviation,) = mean_and_deviation(targets.astype(np.float64))
    if not math.isfinite(mean) or not math.isfinite(deviation) or deviation == 0:
        return None  # the task refuses such targets
    (mean,), (deviation,) = scaling.settled((mean,), (deviation,), 1, "columns")
    return Standardized(loss, mean, deviation)  # type: ignore[arg-type]  # one of the three


def _splits(source: Source, target: str, kind: Kind, settings: TableFile) -> tuple[tuple[str, ...], dict[str, Split]]:
    """(labels, (positions of the rows, targets) by split); without labels, the task is a regression."""
    labels, targets = _targets(source.column(target), kind, settings)
    whole: dict[str, Split] = {
        part: (np.arange(rows.start, rows.stop, dtype=np.int32), targets[rows.start : rows.stop])
        for part, rows in source.splits.items()
    }
    return labels, completed(whole, settings.test_fraction, settings.validation_fraction, settings.seed, labels)


def _inputs(source: Source, table: Table, rows: dict[str, Indices]) -> dict[str, npt.NDArray[np.float32]]:
    """The model inputs of each split, written column by column."""
    inputs = {part: np.empty((len(index), *table.shape), np.float32) for part, index in rows.items()}
    start = 0
    for name in table.columns:
        stop = start + len(table.features_of(name))
        column = source.column(name)
        for part, index in rows.items():
            table.encode(column, inputs[part][:, start:stop], index)
        del column  # before the next one is read
        start = stop
    return inputs


class _Kept:
    """A small table whose columns stay in memory once they are read."""

    def __init__(self, source: Source) -> None:
        self._source, self._columns = source, dict[str, Column]()
        self.path, self.names, self.separator = source.path, source.names, source.separator
        self.paths, self.splits = source.paths, source.splits

    def __len__(self) -> int:
        return len(self._source)

    def column(self, name: str) -> Column:
        if name not in self._columns:
            self._columns[name] = self._source.column(name)
        return self._columns[name]


def _source(path: Path, settings: TableFile) -> Source:
    source: Delimited | ParquetTable
    if path.suffix.lower() == ".parquet" or path.is_dir():
        source = ParquetTable(path, settings.missing)
    else:
        habits = Habits(
            header=settings.header, separator=settings.separator, encoding=settings.encoding, missing=settings.missing
        )
        source = read_rows(path, habits)
    return _Kept(source) if len(source) * len(source.names) <= _KEPT_CELLS else source


def _targets(column: Column, kind: Kind, settings: TableFile) -> tuple[tuple[str, ...], npt.NDArray[np.generic]]:
    """(labels, class indices (rows,)) for a classification, or ((), numbers (rows, 1)) for a regression."""
    missing = column.missing()
    if missing.any():
        row = int(np.argmax(missing))
        text = column.words[column.codes[row]] if column.values is None else ""
        raise column.refused(row, text, "a target: it stands for a missing value", _REMEDY)
    comma, is_date = bool(kind.comma), kind.is_a == "date"
    quantities = is_date or (column.values is not None and _has_many_values(column.values))
    labels = None
    if settings.kind != "regression" and (settings.kind or not quantities):
        words, codes = words_of(column) if column.values is not None else (column.words, column.codes)
        labels = None if quantities else _labels(words, comma=comma)
    if settings.kind == "regression" or (settings.kind is None and labels is None):
        numbers = column.dates(kind.order) if is_date else column.numbers(comma=comma)
        with np.errstate(over="ignore"):  # the task refuses infinite targets
            return (), numbers[:, np.newaxis].astype(np.float32)
    labels = labels or tuple(sorted(set(words), key=lambda text: (len(text), text)))
    if len(labels) < 2:  # noqa: PLR2004 (a classification needs two classes)
        message = f'{column.place(0)}: column "{column.name}" is "{labels[0]}" in every row'
        raise UserError("E131", message, "give rows of another class")
    index = {label: k for k, label in enumerate(labels)}
    classes = np.array(
        [index[word if word in index else shortest(number_of(word, comma=comma) or 0.0)] for word in words], np.int64
    )
    return labels, classes[codes]


def _has_many_values(values: Values) -> bool:
    """Whether there are more different numbers than classes."""
    found = values[:0]
    for start in range(0, len(values), _AT_ONCE):
        found = np.unique(np.concatenate((found, values[start : start + _AT_ONCE])))
        if len(found) > MOST_CLASSES:
            return True
    return False


def _labels(texts: Sequence[str], *, comma: bool = False) -> tuple[str, ...] | None:
    """The sorted names of the classes in a column; None if the column contains quantities.

    Example:
        >>> _labels(["yes", "no", "yes"]), _labels(["2", "10", "2.0"]), _labels(["0.5", "1"])
        (('no', 'yes'), ('2', '10'), None)
    """
    different = sorted(set(texts))
    parsed = [number_of(text, comma=comma) for text in different]
    numbers = {number for number in parsed if number is not None}
    if len(numbers) > MOST_CLASSES:
        return None  # then a text among many numbers is reported as an error, and does not become a class
    if None in parsed:
        return tuple(different)
    return tuple(str(int(number)) for number in sorted(numbers)) if all(map(float.is_integer, numbers)) else None
