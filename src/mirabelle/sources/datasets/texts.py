"""Text classification: read a file with one text and its class in each row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mirabelle.errors import UserError, did_you_mean
from mirabelle.run import files
from mirabelle.sources.datasets.splits import Split, completed
from mirabelle.sources.datasets.text_rows import TextRows, read_text_rows
from mirabelle.sources.datasets.tokenizer import tokenizer_from
from mirabelle.task.loss import CrossEntropy, Loss, balanced
from mirabelle.task.preprocessing.text import TOKENIZER, Text
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.text_settings import TextFile

_NAMES = ("text", "sentence", "content", "question")  # preferred names of the text column, if there are several


def task_of(path: Path, settings: TextFile) -> Task:
    """The task of a file of texts; the errors are those of `TextFile`."""
    named = {"train": path, "validation": settings.validation, "test": settings.test}
    tables = {part: _rows(path.parent / place, settings) for part, place in named.items() if place is not None}
    names = {part: columns_of(table, settings.text, settings.pair, settings.target) for part, table in tables.items()}
    texts = {part: texts_of(table, names[part]) for part, table in tables.items()}
    labels: tuple[str, ...] = ()
    classes: dict[str, np.ndarray[Any, Any]] = {
        part: np.zeros((len(table.rows), 0), np.float32) for part, table in tables.items()
    }
    if settings.kind is None:
        targets = {part: _targets(table, settings.target) for part, table in tables.items()}
        labels = settings.labels or _sorted(targets["train"])
        classes = {part: _classes(tables[part], due, labels) for part, due in targets.items()}
    tokenizer = tokenizer_from(settings.tokenizer, path.parent)
    text = Text(
        tokenizer=files.digest(tokenizer.data),
        inputs=settings.inputs or tuple(name for name in tokenizer.inputs if name != "token_type_ids" or settings.pair),
        max_length=settings.max_length,
        pairs=settings.pair is not None,
        text_columns=() if settings.pattern else names["train"],
    )
    rows: dict[str, Split] = {part: (np.arange(len(due)), due) for part, due in classes.items()}
    places = {part: part for part in rows}
    try:
        splits = completed(rows, settings.test_fraction, settings.validation_fraction, settings.seed, labels)
    except UserError as error:
        raise error.at(str(path)) from None
    parts, cut = {}, 0
    for part, (index, due) in splits.items():
        own = texts[places.get(part, "train")]
        encodings = text.encodings([own[k] for k in index], tokenizer.fast, whole=True)
        cut += sum(bool(one.overflowing) for one in encodings)
        tensors = {name: torch.from_numpy(tokens) for name, tokens in text.inputs_of(encodings).items()}
        parts[part] = Samples(tensors, torch.from_numpy(due) if labels else None)
    if settings.samples is not None:
        parts["train"] = parts["train"].drawn(settings.samples, settings.seed)
    loss: str | Loss = "cross_entropy" if labels else "matching"
    if settings.class_weights == "balanced":
        if not labels:
            raise UserError("E111", "class_weights need classes, and the texts have none", "leave them out")
        loss = CrossEntropy(weights=balanced(parts["train"].targets, len(labels)))
    total = sum(len(due) for _, due in splits.values())
    note = (
        f"{cut:,} of {total:,} texts have more than {settings.max_length} tokens, of which the rest is left out (`max_length`)."
    )
    return Task(
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        loss=settings.loss or loss,
        metric=settings.metric,
        extra_metrics=settings.extra_metrics,
        outputs_are=settings.outputs_are,
        labels=labels,
        name=path.stem,
        preprocessing=text,
        extra_files={TOKENIZER: tokenizer.data},
        notes=[note] if cut else [],
    )


def classes_of(path: Path, settings: TextFile) -> tuple[str, ...]:
    """The names of the classes of a file of texts, sorted by length; () for texts without classes."""
    if settings.kind is not None:
        return ()
    return _sorted(_targets(_rows(path, settings), settings.target))


def _sorted(labels: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(set(labels), key=lambda label: (len(label), label)))


def _rows(path: Path, settings: TextFile) -> TextRows:
    columns = (settings.target, settings.text or _NAMES[0])
    return read_text_rows(path, pattern=settings.pattern, columns=columns, encoding=settings.encoding)


def columns_of(table: TextRows, text: str | None, pair: str | None, target: str) -> tuple[str, ...]:
    """The name of the column of texts, and that of the second texts of pairs.

    Args:
        table: its rows.
        text: name of the column; None for the only one besides the target, or one with a usual name.
        pair: name of the column of the second text, if there is one.
        target: name of a column that holds no text.

    Raises:
        UserError: E110 if there is no such column, E131 if no name is given and there are several.
    """
    others = [name for name in table.columns if name != target]
    name = text or (others[0] if len(others) == 1 else next((name for name in _NAMES if name in others), ""))
    for column in (name, *([pair] if pair else [])):
        if column not in others:
            message = f'{table.path} has no column "{column}"' if column else f"{table.path} has several text columns"
            remedy = did_you_mean(column, others) if column else f"give one of them as `text`: {', '.join(others)}"
            raise UserError("E110" if column else "E131", message, remedy)
    return (name, pair) if pair else (name,)


def texts_of(table: TextRows, columns: Sequence[str]) -> list[Any]:
    """The texts of a table, or its pairs of texts for two columns."""
    found = [table.column(name) for name in columns]
    return list(zip(*found, strict=True)) if len(found) > 1 else found[0]


def _targets(table: TextRows, name: str) -> list[str]:
    if name not in table.columns:
        message = f'{table.path} has no column "{name}" for the class of each text'
        raise UserError("E131", message, f"give its name as `target`; the columns are {', '.join(table.columns)}")
    return table.column(name)


def _classes(table: TextRows, names: Sequence[str], labels: Sequence[str]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    if len(labels) < 2:  # noqa: PLR2004 (a classification needs two classes)
        message = f'{table.path}: all texts have the class "{labels[0]}"'
        raise UserError("E131", message, "give texts of another class")
    numbers = {label: k for k, label in enumerate(labels)}
    for name, line in zip(names, table.lines, strict=True):
        if name not in numbers:
            known = ", ".join(labels[:10])
            message = f'{table.path}, line {line}: "{name}" is not a class; the classes are {known}'
            raise UserError("E131", message, "correct the row")
    return np.array([numbers[name] for name in names], np.int64)
