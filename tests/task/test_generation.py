"""What a model of sequences to sequences writes, judged as it is written, and taken as targets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Generation, Run, Task, Training, compress, distill, quantize
from mirabelle.errors import UserError
from mirabelle.objectives import TaskLoss
from mirabelle.task.batch import call
from mirabelle.task.metric import Metric
from mirabelle.training import evaluate, fit
from mirabelle.training.teacher_targets import answered

SYMBOLS, LENGTH, BEGIN, END = 7, 6, 0, 1


class Writer(nn.Module):
    """What follows is anything, drawn once for each sum over what was written so far and the source."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("drawn", torch.randint(1, SYMBOLS, (97,), generator=torch.Generator().manual_seed(0)))

    def forward(self, source: Tensor, written: Tensor) -> Tensor:
        sums = (written * torch.arange(3, 3 + LENGTH)).cumsum(1) + source.sum(1, keepdim=True)
        return nn.functional.one_hot(self.get_buffer("drawn")[sums % 97], SYMBOLS).float()


class Table(nn.Module):
    """Scores of what follows, from the symbol of the source at the same place."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(SYMBOLS, 12)
        self.scores = nn.Linear(12, SYMBOLS)

    def forward(self, source: Tensor, written: Tensor) -> Tensor:
        scores: Tensor = self.scores(self.table(source)) + 0.0 * written.unsqueeze(-1)
        return scores


class Next(nn.Module):
    """Writes the successor of each symbol of the source, and ends behind the last symbol."""

    def forward(self, source: Tensor, written: Tensor) -> Tensor:
        del written
        return nn.functional.one_hot((source + 1) % SYMBOLS, SYMBOLS).float()


def right(sequences: Tensor, targets: Tensor) -> Tensor:
    return (sequences == targets).all(1).float()


EXACT = Metric("exact", right, of_sequences=True)


def sources(count: int, seed: int) -> Tensor:
    """Symbols 1 to 5, or nothing but their end, 0, from some place on."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.arange(LENGTH)[None]
    ends = torch.randint(1, LENGTH, (count, 1), generator=generator)
    return torch.randint(1, SYMBOLS - 1, (count, LENGTH), generator=generator).masked_fill(places >= ends, 0)


def successors(source: Tensor) -> Tensor:
    due = source + 1
    ended = (due == END).long().cumsum(1) > 1
    return due.masked_fill(ended, -100)


@pytest.fixture
def successor_task() -> Task:
    """The training data say nothing; who learns anything has it from the teacher."""
    train, test = sources(200, 0), sources(50, 1)
    written = torch.full((200, LENGTH), END)
    return Task(
        train=((train, written), torch.full((200, LENGTH), 3)),
        validation=((test, written[:50]), successors(test)),
        test=((test, written[:50]), successors(test)),
        loss="token_cross_entropy",
        metric=EXACT,
        generation=Generation(begin=BEGIN, end=END),
    )


def layer_by_layer(model: Writer, source: Tensor) -> Tensor:
    written, found = torch.full((len(source), LENGTH + 1), END), torch.full((len(source), LENGTH), -100)
    written[:, 0] = BEGIN
    open_rows = torch.ones(len(source), dtype=torch.bool)
    for place in range(LENGTH):
        symbol = model(source, written[:, :LENGTH])[:, place].argmax(-1)
        found[open_rows, place] = symbol[open_rows]
        open_rows &= symbol != END
        written[open_rows, place + 1] = symbol[open_rows]
    return found


@pytest.mark.parametrize("named", [False, True])
def test_what_is_written_is_what_comes_one_symbol_after_the_other(named: bool) -> None:
    model, source = Writer(), sources(40, 2)
    draft = torch.randint(SYMBOLS, (40, LENGTH), generator=torch.Generator().manual_seed(3))
    inputs = {"written": draft, "source": source} if named else (source, draft)
    calls = []

    def run(given: Any) -> Tensor:
        calls.append(given)
        return call(model, given)

    with torch.no_grad():
        due = layer_by_layer(model, source)
        found = Generation(BEGIN, END, written="written" if named else -1)(run, inputs)
    assert torch.equal(found, due)
    assert len(calls) <= LENGTH
    assert len({tuple(row) for row in due.tolist()}) > 5  # the writer says something
    assert bool((due == -100).any())


def test_inputs_under_which_sequences_are_asked_for() -> None:
    generation = Generation(BEGIN, END)
    sequences = torch.tensor([[4, 5, END, -100], [2, 3, 4, 5]])
    source, written = generation.reading((torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.long)), sequences)
    assert source.shape == (2, 3)
    assert written.tolist() == [[BEGIN, 4, 5, END], [BEGIN, 2, 3, 4]]


def test_a_student_learns_what_its_teacher_writes(successor_task: Task, run: Run) -> None:
    task = successor_task.with_teacher(Next())
    found = answered(task, run)
    assert torch.equal(found.train.targets, successors(task.train.inputs[0]))
    assert torch.equal(
        found.train.inputs[1][:, 1:], found.train.targets[:, :-1].masked_fill(found.train.targets[:, :-1] < 0, END)
    )
    assert torch.equal(found.test.targets, task.test.targets)
    training = Training(epochs=20, batch_size=20, lr=0.05, objective=1.0 * TaskLoss(), targets="teacher", precision="float32")
    student = fit(Table(), task, training, run)
    assert task.metric.value(evaluate(student, task.test, task)) == 1.0
    kept = list((run.journal.cache / "teacher").glob("answers-*.safetensors"))
    assert len(kept) == 2  # as they are, and as the training runs


def test_answers_are_found_once(successor_task: Task, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    task = successor_task.with_teacher(Next())
    first = answered(task, run).train.targets
    monkeypatch.setattr("mirabelle.training.teacher_targets.answer", None)
    assert torch.equal(answered(task, run).train.targets, first)


def test_decisions_of_a_classifier_are_targets_too(blobs: Task, mlp: nn.Sequential, run: Run) -> None:
    found = answered(blobs.with_teacher(mlp), run)
    assert torch.equal(found.train.targets, mlp(blobs.train.inputs).argmax(1))


def test_who_gives_no_answers_is_told(blobs: Task, mlp: nn.Sequential, run: Run) -> None:
    training = Training(epochs=1, targets="teacher")
    with pytest.raises(UserError, match="needs a teacher"):
        fit(mlp, blobs, training, run)
    x = torch.randn(40, 8)
    numbers = Task(train=(x, x[:, :3]), test=(x, x[:, :3]), loss="mse", metric="negative_squared_error").with_teacher(mlp)
    with pytest.raises(UserError, match="neither classes nor sequences"):
        fit(mlp, numbers, training, run)


def test_a_metric_of_what_is_written_needs_to_know_how(successor_task: Task) -> None:
    train = successor_task.train.inputs, successor_task.train.targets
    with pytest.raises(UserError, match="the metric exact needs generated sequences"):
        Task(train=train, test=train, loss="token_cross_entropy", metric=EXACT)


def test_what_ships_is_judged_by_what_it_writes(successor_task: Task, tmp_path: Path) -> None:
    """The whole job: the teacher's sequences taught, integers exported, written again in ONNX Runtime."""
    torch.manual_seed(0)
    training = Training(epochs=20, batch_size=20, lr=0.05, objective=1.0 * TaskLoss(), targets="teacher", precision="float32")
    student = distill.Student(width=1.0, train=training)
    result = compress(Table(), successor_task, [student, quantize.Dynamic()], out=tmp_path / "run", teacher=Next())
    assert result.profile.metric is not None
    assert result.profile.metric.value == 1.0
    assert result.start.metric is not None
    assert result.start.metric.value < 0.5


def test_bleu_is_that_of_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    words = ["a", "man", "rides", "red", "bicycle", "the", "street", "down", ".", "dog"]
    bleu = Metric.bleu(lambda symbols: " ".join(words[symbol] for symbol in symbols))
    generator = torch.Generator().manual_seed(0)
    due = torch.randint(10, (30, 12), generator=generator)
    written = torch.where(torch.rand(30, 12, generator=generator) < 0.8, due, torch.randint(10, (30, 12), generator=generator))
    written[3:6, 7:], due[10:20, 9:] = -100, -100
    texts = [
        [" ".join(words[symbol] for symbol in row if symbol >= 0) for row in sequences.tolist()] for sequences in (written, due)
    ]
    expected = sacrebleu.corpus_bleu(texts[0], [texts[1]]).score / 100
    scores = bleu.of_samples(written, due)
    assert bleu.value(scores) == pytest.approx(expected, abs=1e-12)
    value, low, high = bleu.interval(scores)
    assert low < value < high
    assert bleu.value(bleu.of_samples(due, due)) == pytest.approx(1.0)


def test_without_sacrebleu_its_absence_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(UserError, match="BLEU needs sacrebleu") as caught:
        Metric.bleu(str)
    assert caught.value.code == "E160"
    assert "mirabelle[translation]" in caught.value.remedy
