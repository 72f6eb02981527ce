"""Tagging of words: read texts with a tag for each word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mirabelle.errors import UserError
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.run import files
from mirabelle.sources.datasets.splits import rows_by_split
from mirabelle.sources.datasets.text_rows import TextRows, read_lines, read_text_rows
from mirabelle.sources.datasets.tokenizer import tokenizer_from
from mirabelle.task.preprocessing.text import TOKENIZER, Text
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.text_settings import TokenFile

_WORDS = ("tokens", "words")
_TAGS = ("tags", "ner_tags", "pos_tags", "labels")
_CONLLU = (1, 3)  # columns of the word and of its part of speech
_OUTSIDE = "O"  # the tag of a word that is part of no name


@dataclass(frozen=True)
class TaggedText:
    """The words of a text and their tags, with the line where it begins."""

    words: Sequence[str]
    tags: Sequence[str]
    line: int


def task_of(path: Path, settings: TokenFile) -> Task:
    """The task of a file of tagged words; the errors are those of `TokenFile`."""
    named = {"train": path, "validation": settings.validation, "test": settings.test}
    texts = {part: list(_texts(path.parent / place)) for part, place in named.items() if place is not None}
    labels = settings.labels or _sorted(texts["train"])
    tokenizer = tokenizer_from(settings.tokenizer, path.parent)
    text = Text(
        tokenizer=files.digest(tokenizer.data),
        inputs=settings.inputs,
        max_length=settings.max_length,
        use="tag",
        text_columns=_columns(path),
    )
    parts = {}
    for part, own in rows_by_split(texts, settings, path).items():
        encodings = text.encodings([list(one.words) for one in own], tokenizer.fast, whole=True, words=True)
        tensors = {name: torch.from_numpy(tokens) for name, tokens in text.inputs_of(encodings).items()}
        due = [_targets(one, encoding.word_ids, labels, path) for one, encoding in zip(own, encodings, strict=True)]
        parts[part] = Samples(tensors, torch.tensor(due))
    return Task(
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        loss=settings.loss or "token_cross_entropy",
        metric=settings.metric,
        extra_metrics=settings.extra_metrics,
        outputs_are=settings.outputs_are,
        labels=labels,
        name=path.stem,
        preprocessing=text,
        extra_files={TOKENIZER: tokenizer.data},
    )


def tags_of(path: Path) -> tuple[str, ...]:
    """The tags of a file of tagged words, "O" first."""
    return _sorted(_texts(path))


def _sorted(texts: Iterable[TaggedText]) -> tuple[str, ...]:
    return tuple(sorted({tag for text in texts for tag in text.tags}, key=lambda tag: (tag != _OUTSIDE, tag)))


def _targets(text: TaggedText, word_ids: Sequence[int | None], labels: Sequence[str], path: Path) -> list[int]:
    """The tag of each token that begins a word; UNLABELLED for others."""
    numbers, before, found = {label: k for k, label in enumerate(labels)}, None, []
    for word in word_ids:
        begins = word is not None and word != before
        before = word
        tag = text.tags[word] if begins and word is not None else None
        if tag is not None and tag not in numbers:
            message = f'{path}, line {text.line}: "{tag}" is not a tag; the tags are {", ".join(labels[:10])}'
            raise UserError("E131", message, "correct the text, or give `labels`")
        found.append(UNLABELLED if tag is None else numbers[tag])
    return found


def _texts(path: Path) -> Iterator[TaggedText]:
    if path.suffix.lower() == ".jsonl":
        yield from _of_rows(read_text_rows(path))
        return
    if not path.is_file():
        raise UserError("E130", f"no tagged words at {path}", 'paths are relative to the recipe; "~" is not expanded')
    words: list[str] = []
    tags: list[str] = []
    start, wide = 1, path.suffix.lower() == ".conllu"
    for number, line in enumerate((*read_lines(path), ""), start=1):
        cells = line.split("\t") if wide else line.split()
        if not line.strip():
            if words:
                yield TaggedText(words, tags, start)
            words, tags, start = [], [], number + 1
        elif line.startswith("-DOCSTART-") or (wide and (line.startswith("#") or not cells[0].isdigit())):
            continue
        elif len(cells) <= (max(_CONLLU) if wide else 1):
            message = f'{path}, line {number}: "{line[:40]}" is not a word and its tag'
            raise UserError("E131", message, "write a word, a tab and its tag in each line, and an empty line after each text")
        else:
            word, tag = (cells[k] for k in (_CONLLU if wide else (0, -1)))
            words.append(word)
            tags.append(tag)


def _columns(path: Path) -> tuple[str, ...]:
    """The column of the words in a file with columns."""
    columns = read_text_rows(path).columns if path.suffix.lower() == ".jsonl" else ()
    return tuple(name for name in _WORDS if name in columns)[:1]


def _of_rows(table: TextRows) -> Iterator[TaggedText]:
    names = [next((name for name in known if name in table.columns), None) for known in (_WORDS, _TAGS)]
    if None in names:
        message = f"{table.path} has the columns {', '.join(table.columns)}, and needs words and their tags"
        raise UserError("E131", message, 'write {"tokens": ["Ada", "codes"], "tags": ["PERSON", "O"]} in each line')
    for row, line in zip(table.rows, table.lines, strict=True):
        words, tags = (row.get(name or "") for name in names)
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags) or not words:
            message = f"{table.path}, line {line}: words and tags must be two lists of one length"
            raise UserError("E131", message, "correct the line")
        yield TaggedText([str(word) for word in words], [str(tag) for tag in tags], line)
