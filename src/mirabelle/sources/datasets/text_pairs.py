"""Sequence to sequence: read pairs of texts for a model that writes the second for the first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mirabelle.errors import UserError, did_you_mean
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.run import files
from mirabelle.sources.datasets.splits import rows_by_split
from mirabelle.sources.datasets.text_rows import TextRows, read_lines, read_text_rows
from mirabelle.sources.datasets.tokenizer import Tokenizer, tokenizer_from
from mirabelle.sources.models.huggingface import place_of
from mirabelle.task.generation import Generation
from mirabelle.task.preprocessing.text import TOKENIZER, Text
from mirabelle.task.preprocessing.text_results import DECODER
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.text_settings import SequenceFile

_PAIR = 2
_CONFIGS = ("config.json", "generation_config.json")


def task_of(path: Path, settings: SequenceFile) -> Task:
    """The task of a file of pairs of texts; the errors are those of `SequenceFile`."""
    named = {"train": path, "validation": settings.validation, "test": settings.test}
    pairs = {part: _pairs(path.parent / place, settings) for part, place in named.items() if place is not None}
    tokenizer = tokenizer_from(settings.tokenizer, path.parent)
    if tokenizer.end is None:
        message = f"the tokenizer {settings.tokenizer} has no end symbol"
        raise UserError("E121", message, "give that of a model of sequences")
    begin = settings.begin if settings.begin is not None else _start_token(settings.tokenizer, path.parent)
    text = Text(
        tokenizer=files.digest(tokenizer.data),
        inputs=("input_ids", "attention_mask"),
        max_length=settings.max_length,
        use="write",
        begin=begin,
        end=tokenizer.end,
        written=settings.written or settings.max_length,
        prefix=settings.prefix,
        text_columns=() if path.suffix.lower() == ".txt" else (settings.text or read_text_rows(path).columns[0],),
    )
    generation = Generation(begin=begin, end=tokenizer.end, written=DECODER)
    parts = {}
    for part, own in rows_by_split(pairs, settings, path).items():
        first, second = zip(*own, strict=True)
        targets = _targets(second, tokenizer, text.written or 0, tokenizer.end)
        arrays = text.inputs_of(text.encodings(first, tokenizer.fast, whole=True))
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        parts[part] = Samples(dict(generation.reading({**inputs, DECODER: targets}, targets)), targets)
    return Task(
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        loss=settings.loss or "token_cross_entropy",
        metric=settings.metric or "negative_perplexity",
        extra_metrics=settings.extra_metrics,
        outputs_are=settings.outputs_are,
        name=path.stem,
        preprocessing=text,
        generation=generation,
        extra_files={TOKENIZER: tokenizer.data},
    )


def _targets(texts: tuple[str, ...], tokenizer: Tokenizer, length: int, end: int) -> Tensor:
    """The tokens of texts with their end symbol, padded with UNLABELLED, (texts, length); a longer text is cut."""
    tokenizer.fast.no_truncation()
    tokenizer.fast.no_padding()
    found = torch.full((len(texts), length), UNLABELLED)
    for row, encoding in zip(found, tokenizer.fast.encode_batch(list(texts)), strict=True):
        tokens = encoding.ids[: encoding.ids.index(end)] if end in encoding.ids[1:] else encoding.ids
        kept = torch.tensor([*tokens, end][:length])
        row[: len(kept)] = kept
    return found


def _start_token(name: str, folder: Path) -> int:
    """The first symbol of the decoder, from the configuration beside the tokenizer."""
    place = Path(place_of(name, folder)[0])
    for file in _CONFIGS:
        try:
            found = json.loads((place / file).read_text("utf-8")).get("decoder_start_token_id")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(found, int):
            return found
    message = f"no config.json in {name} tells the start token of the decoder"
    raise UserError("E121", message, "give its number: begin = …")


def _pairs(path: Path, settings: SequenceFile) -> list[tuple[str, str]]:
    table = _of_tabs(path) if path.suffix.lower() == ".txt" else read_text_rows(path)
    if len(table.columns) < _PAIR:
        message = f"{path} has one column, and pairs of texts need two"
        raise UserError("E131", message, "write a header with two names, then a text, a tab and a text in each line")
    names = [settings.text or table.columns[0], settings.target or table.columns[1]]
    for name in names:
        if name not in table.columns:
            raise UserError("E110", f'{path} has no column "{name}"', did_you_mean(name, list(table.columns)))
    return list(zip(*(table.column(name) for name in names), strict=True))


def _of_tabs(path: Path) -> TextRows:
    if not path.is_file():
        raise UserError("E130", f"no texts at {path}", 'paths are relative to the recipe; "~" is not expanded')
    rows, lines = [], []
    for number, line in enumerate(read_lines(path), start=1):
        cells = line.split("\t")
        if line.strip() and len(cells) != _PAIR:
            message = f"{path}, line {number}: a model of sequences needs a text, a tab and a text"
            raise UserError("E131", message, "give pairs of texts in a .tsv, .jsonl or .txt file")
        if line.strip():
            rows.append({"text": cells[0], "target": cells[1]})
            lines.append(number)
    if not rows:
        raise UserError("E130", f"{path} has no rows", "give at least one")
    return TextRows(path, ["text", "target"], rows, lines)
