"""A file of texts, one a row, and what each of them is: .tsv, .jsonl or .csv."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mirabelle import files
from mirabelle.batch import Samples
from mirabelle.errors import UserError, did_you_mean, first_line
from mirabelle.loss import CrossEntropy, Loss, balanced
from mirabelle.preprocessing.text import TOKENIZER, Text
from mirabelle.sources.huggingface import library, place_of
from mirabelle.sources.splits import completed
from mirabelle.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.settings import TextFile

_NAMES = ("text", "sentence", "content", "question")  # of a column of texts, where there are several others


@dataclass(frozen=True)
class _Table:
    """Rows of texts by column, and the line at which each stands."""

    path: Path
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    lines: Sequence[int]

    def column(self, name: str) -> list[str]:
        """As text.

        Raises:
            UserError: E131 naming the line where it is missing or empty.
        """
        found = []
        for row, line in zip(self.rows, self.lines, strict=True):
            value = row.get(name)
            if value is None or isinstance(value, (dict, list)) or not str(value).strip():
                raise UserError(
                    "E131", f'{self.path}, line {line}: "{name}" is missing or empty', "write it, or leave out the row"
                )
            found.append(str(value))
        return found


def task_of(path: Path, settings: TextFile) -> Task:
    """The task that a file gives; errors as `TextFile` tells them."""
    named = {"train": path, "validation": settings.validation, "test": settings.test}
    tables = {part: _read(path.parent / place) for part, place in named.items() if place is not None}
    texts, targets = {}, {}
    for part, table in tables.items():
        texts[part], targets[part] = _columns(table, settings)
    labels = settings.labels or tuple(sorted(set(targets["train"]), key=lambda label: (len(label), label)))
    classes = {part: _classes(tables[part], names, labels) for part, names in targets.items()}
    tokenizer, text, data = _tokenizer(path.parent, settings)
    rows = {part: (np.arange(len(names)), classes[part]) for part, names in targets.items()}
    places = {part: part for part in rows}
    try:
        splits = completed(rows, settings.test_fraction, settings.validation_fraction, settings.seed, labels)
    except UserError as error:
        raise error.at(str(path)) from None
    parts = {}
    for part, (index, due) in splits.items():
        own = texts[places.get(part, "train")]
        inputs = text.tokens([own[k] for k in index], tokenizer, whole=True)
        tensors = {name: torch.from_numpy(tokens) for name, tokens in inputs.items()}
        parts[part] = Samples(tensors, torch.from_numpy(due))
    loss: str | Loss = "cross_entropy"
    if settings.class_weights == "balanced":
        loss = CrossEntropy(weights=balanced(parts["train"].targets, len(labels)))
    return Task(
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        loss=settings.loss or loss,
        metric=settings.metric or "accuracy",
        also=settings.also,
        labels=labels,
        name=path.stem,
        preprocessing=text,
        beside={TOKENIZER: data},
    )


def _tokenizer(folder: Path, settings: TextFile) -> tuple[Any, Text, bytes]:
    """The tokenizer, how it is used, and its file.

    Raises:
        UserError: E160 without transformers, E130 when it is no tokenizer, E121 when it is one of Python alone.
    """
    transformers, (place, revision) = library(), place_of(settings.tokenizer, folder)
    try:
        options = {"trust_remote_code": False, **({"revision": revision} if revision else {})}
        found = transformers.AutoTokenizer.from_pretrained(place, **options)
    except Exception as error:
        message = f"transformers finds no tokenizer at {settings.tokenizer}: {first_line(error)}"
        raise UserError("E130", message, "name the folder of the model, or hf:organisation/model") from error
    if not found.is_fast:
        raise UserError(
            "E121", f"{settings.tokenizer} has a tokenizer written in Python, which cannot travel", "save a fast one"
        )
    data = found.backend_tokenizer.to_str().encode()
    inputs = settings.inputs or tuple(name for name in found.model_input_names if name != "token_type_ids" or settings.pair)
    text = Text(tokenizer=files.digest(data), inputs=inputs, max_length=settings.max_length, pairs=settings.pair is not None)
    return found.backend_tokenizer, text, data


def _columns(table: _Table, settings: TextFile) -> tuple[list[Any], list[str]]:
    """(texts or pairs of them, targets) of a table."""
    if settings.target not in table.columns:
        message = f'{table.path} has no column "{settings.target}" that says what each text is'
        raise UserError("E131", message, f"name it as `target`; there are {', '.join(table.columns)}")
    others = [name for name in table.columns if name != settings.target]
    name = settings.text or (others[0] if len(others) == 1 else next((name for name in _NAMES if name in others), ""))
    for column in (name, *([settings.pair] if settings.pair else [])):
        if column not in others:
            message = f'{table.path} has no column "{column}"' if column else f"{table.path} has several columns of texts"
            remedy = did_you_mean(column, others) if column else f"name one as `text`: {', '.join(others)}"
            raise UserError("E110" if column else "E131", message, remedy)
    texts: list[Any] = table.column(name)
    if settings.pair:
        texts = list(zip(texts, table.column(settings.pair), strict=True))
    return texts, table.column(settings.target)


def _classes(table: _Table, names: Sequence[str], labels: Sequence[str]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    if len(labels) < 2:  # noqa: PLR2004 (something to choose between)
        raise UserError("E131", f'{table.path}: every text is "{labels[0]}"', "give texts of another class")
    numbers = {label: k for k, label in enumerate(labels)}
    for name, line in zip(names, table.lines, strict=True):
        if name not in numbers:
            known = ", ".join(labels[:10])
            raise UserError("E131", f'{table.path}, line {line}: "{name}" is no class; there are {known}', "mend the row")
    return np.array([numbers[name] for name in names], np.int64)


def _read(path: Path) -> _Table:
    """A table of texts.

    Raises:
        UserError: E130 when it is missing or empty, E131 with the line at which it is none.
    """
    if not path.is_file():
        raise UserError("E130", f"no texts at {path}", 'paths are relative to the recipe; "~" is not expanded')
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError("E131", f"{path} is no text in UTF-8: {error}", "save it in UTF-8") from error
    suffix = path.suffix.lower()
    table = _of_json(path, lines) if suffix == ".jsonl" else _of_columns(path, lines, "\t" if suffix == ".tsv" else ",")
    if not table.rows:
        raise UserError("E130", f"{path} has no row", "give at least one")
    return table


def _of_json(path: Path, lines: Sequence[str]) -> _Table:
    rows, places = [], []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError("E131", f"{path}, line {number} is no JSON: {error}", "write one object a line") from error
            if not isinstance(row, dict):
                raise UserError("E131", f"{path}, line {number} is no JSON object", 'write {"text": …, "label": …}')
            rows.append(row)
            places.append(number)
    return _Table(path, list(rows[0]) if rows else [], rows, places)


def _of_columns(path: Path, lines: Sequence[str], separator: str) -> _Table:
    """A header and rows; in a .tsv quotation marks are what they are, letters of a text."""
    text = (f"{line}\n" for line in lines)
    reader = csv.reader(text) if separator == "," else csv.reader(text, delimiter=separator, quoting=csv.QUOTE_NONE)
    header = [name.strip() for name in next(reader, [])]
    rows, places = [], []
    for row in reader:
        if row:
            if len(row) != len(header):
                message = f"{path}, line {reader.line_num}: {len(row)} cells under a header of {len(header)}"
                raise UserError("E131", message, "mend the row")
            rows.append(dict(zip(header, row, strict=True)))
            places.append(reader.line_num)
    return _Table(path, header, rows, places)
