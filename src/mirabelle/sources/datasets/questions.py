"""Extractive question answering: read questions and answers from a .json file in SQuAD's format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mirabelle.errors import UserError, first_line
from mirabelle.numerics.answers import answer_exact_match, answer_f1
from mirabelle.numerics.metrics import span_of
from mirabelle.numerics.several_outputs import UNLABELLED
from mirabelle.run import files
from mirabelle.sources.datasets.splits import Split, completed
from mirabelle.sources.datasets.tokenizer import tokenizer_from
from mirabelle.task.metric import Metric
from mirabelle.task.preprocessing.text import TOKENIZER, Text
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task

if TYPE_CHECKING:
    from mirabelle.sources.datasets.text_settings import QuestionFile


@dataclass(frozen=True)
class Question:
    """A question about a paragraph.

    Args:
        text: the question.
        paragraph: the text that contains the answer.
        answers: the accepted answers.
        start: position of the first answer in the paragraph, in characters.
    """

    text: str
    paragraph: str
    answers: tuple[str, ...]
    start: int


@dataclass(frozen=True, eq=False)
class Passages:
    """Converts the outputs of a model to answers as text, and compares them with the accepted answers.

    Args:
        questions: all questions of a task. Targets, (samples, 3), hold the first token and the last token of the answer, and
            the index of the question in this sequence.
        places: for each token of a paragraph its first character and the one after its last, (questions, tokens, 2); −1 for
            other tokens.
    """

    questions: Sequence[Question]
    places: Tensor

    def found(self, outputs: Tensor, targets: Tensor) -> Iterator[tuple[str, tuple[str, ...]]]:
        """(predicted answer, accepted answers) of each sample, from scores of shape (samples, tokens, 2)."""
        rows = targets[:, 2]
        places = self.places[rows]
        spans = span_of(outputs, within=places[:, :, 0] >= 0)
        for row, place, (first, last) in zip(rows.tolist(), places, spans.tolist(), strict=True):
            question = self.questions[row]
            yield question.paragraph[place[first, 0] : place[last, 1]], question.answers

    def exact_match(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 if the predicted answer equals an accepted answer after normalization, else 0; (samples,)."""
        return torch.tensor([answer_exact_match(*pair) for pair in self.found(outputs, targets)])

    def f1(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The F1 score of the words shared with the most similar accepted answer, (samples,)."""
        return torch.tensor([answer_f1(*pair) for pair in self.found(outputs, targets)])

    def metric(self, name: str) -> Metric:
        """The metric "answer_exact_match" or "answer_f1" over these questions, or any other metric by name."""
        own = {"answer_exact_match": self.exact_match, "answer_f1": self.f1}
        return Metric(name, own[name]) if name in own else Metric.of(name)


def task_of(path: Path, settings: QuestionFile) -> Task:
    """The task of a file of questions; the errors are those of `QuestionFile`."""
    named = {"train": path, "validation": settings.validation, "test": settings.test}
    articles = {part: read_articles(path.parent / place) for part, place in named.items() if place is not None}
    divided = _divided(articles, settings, path)
    tokenizer = tokenizer_from(settings.tokenizer, path.parent)
    text = Text(
        tokenizer=files.digest(tokenizer.data),
        inputs=settings.inputs or tokenizer.inputs,
        max_length=settings.max_length,
        pairs=True,
        answers=True,
    )
    questions = [question for part in divided.values() for question in part]
    encodings = text.encodings([(one.text, one.paragraph) for one in questions], tokenizer.fast, whole=True)
    passages = Passages(questions, torch.from_numpy(text.places(encodings)))
    targets = _targets(passages)
    inputs = {name: torch.from_numpy(tokens) for name, tokens in text.inputs_of(encodings).items()}
    parts, first = {}, 0
    for part, own in divided.items():
        rows = torch.arange(first, first + len(own))
        if part == "train":
            rows = rows[targets[rows, 0] != UNLABELLED]
        if not len(rows):
            message = f"{path}: no answer is within the first {settings.max_length} tokens"
            raise UserError("E131", message, "increase max_length")
        parts[part] = Samples({name: tensor[rows] for name, tensor in inputs.items()}, targets[rows])
        first += len(own)
    judged = sum(int((parts[part].targets[:, 0] == UNLABELLED).sum()) for part in ("validation", "test"))
    return Task(
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        loss=settings.loss or "span",
        metric=passages.metric(settings.metric or "answer_f1"),
        extra_metrics=[passages.metric(name) for name in settings.extra_metrics or ("answer_exact_match",)],
        name=path.stem,
        preprocessing=text,
        extra_files={TOKENIZER: tokenizer.data},
        notes=_notes(encodings, len(divided["train"]) - len(parts["train"]), judged, divided, settings.max_length),
    )


def _notes(
    encodings: Sequence[Any], dropped: int, judged: int, divided: Mapping[str, Sequence[Question]], most: int
) -> list[str]:
    """Sentences on what is beyond the last token: paragraphs, training questions and answers that are judged."""
    cut, evaluated = sum(bool(one.overflowing) for one in encodings), sum(len(own) for own in divided.values())
    notes = [f"{cut:,} of {evaluated:,} paragraphs are cut: with its question, an input has {most} tokens (`max_length`)."]
    if dropped:
        notes.append(f"{dropped:,} of {len(divided['train']):,} training questions are left out: their answers are cut off.")
    if judged:
        count = evaluated - len(divided["train"])
        notes.append(
            f"{judged:,} of {count:,} validation and test questions have answers that are cut off; they count as wrong."
        )
    return notes if cut else []


def _divided(articles: Mapping[str, Sequence[list[Question]]], settings: QuestionFile, path: Path) -> dict[str, list[Question]]:
    """The questions by split; all questions of an article are in the same split."""
    counted: dict[str, Split] = {part: (np.arange(len(own)), np.zeros(len(own))) for part, own in articles.items()}
    try:
        splits = completed(counted, settings.test_fraction, settings.validation_fraction, settings.seed)
    except UserError as error:
        raise error.at(f"{path}, by articles") from None
    return {
        part: [question for article in index for question in articles.get(part, articles["train"])[article]]
        for part, (index, _) in splits.items()
    }


def _targets(passages: Passages) -> Tensor:
    """The targets (questions, 3): first and last token of the first answer, and the index of the question.

    Tokens are −100 if the answer is beyond the last token of the input.
    """
    targets = torch.full((len(passages.questions), 3), UNLABELLED)
    targets[:, 2] = torch.arange(len(passages.questions))
    for row, question in enumerate(passages.questions):
        begins, ends = passages.places[row].unbind(1)
        stop = question.start + len(question.answers[0])
        inside = torch.nonzero((begins >= 0) & (ends > question.start) & (begins < stop)).flatten()
        if len(inside) and int(ends.max()) >= len(question.paragraph[:stop].rstrip()):
            targets[row, 0], targets[row, 1] = inside[0], inside[-1]
    return targets


def read_articles(path: Path) -> list[list[Question]]:
    """The questions of each article in a file in SQuAD's format.

    Raises:
        UserError: E130 if the file is missing or has no questions, E131 if it is not in this format, or a question has no
            answer in its paragraph.
    """
    if not path.is_file():
        raise UserError("E130", f"no questions at {path}", 'paths are relative to the recipe; "~" is not expanded')
    try:
        data = json.loads(path.read_text("utf-8-sig"))
        articles = [
            [_question(path, paragraph["context"], entry) for paragraph in article["paragraphs"] for entry in paragraph["qas"]]
            for article in data["data"]
        ]
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError("E131", f"{path} is not valid JSON in UTF-8: {first_line(error)}", "save it again") from error
    except (KeyError, TypeError) as error:
        due = 'the format is {"data": [{"paragraphs": [{"context": …, "qas": [{"question": …, "answers": […]}]}]}]}'
        raise UserError("E131", f"{path} is not in SQuAD's format: {error} is missing", due) from error
    articles = [article for article in articles if article]
    if not articles:
        raise UserError("E130", f"{path} has no questions", "give at least one")
    return articles


def _question(path: Path, paragraph: str, entry: Mapping[str, Any]) -> Question:
    text, answers = entry["question"].strip(), entry["answers"]
    place = f'{path}, question "{entry.get("id", text)}"'
    if not answers:
        raise UserError("E131", f"{place} has no answer", "remove questions that the paragraph does not answer")
    for answer in answers:
        start, due = answer["answer_start"], answer["text"]
        if not due.strip() or paragraph[start : start + len(due)] != due:
            found = paragraph[start : start + len(due)]
            message = f'{place}: the answer is "{due[:40]}", but at position {start} the paragraph has "{found[:40]}"'
            raise UserError("E131", message, "give answer_start in characters from the start of the paragraph, from 0 on")
    return Question(text, paragraph, tuple(answer["text"] for answer in answers), answers[0]["answer_start"])
