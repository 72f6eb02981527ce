from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mirabelle import Run, Task, Training
from mirabelle.distill import relabelled
from mirabelle.errors import UserError
from mirabelle.objectives import SoftTargets, TaskLoss
from mirabelle.training import fit

VOCABULARY = 6


class Tagger(nn.Module):
    """One decision a token."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY)

    def forward(self, words: Tensor) -> Tensor:
        out: Tensor = self.head(self.table(words))
        return out


def tokens_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.transpose(1, 2), targets)


def right_tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) == targets).double().mean(1)


@pytest.fixture
def sentences() -> Task:
    words = torch.randint(VOCABULARY, (120, 5), generator=torch.Generator().manual_seed(0))
    return Task(train=(words, words * 0), test=(words, (words + 1) % VOCABULARY), loss=tokens_loss, metric=right_tokens)


def test_a_student_learns_the_sequences_that_its_teacher_gives(sentences: Task, run: Run) -> None:
    """The training set says nothing; the teacher's answers are shorter in some batches."""
    count = 0

    def generated(words: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return ((words + 1) % VOCABULARY)[:, : 4 if count == 1 else 5]

    task = relabelled(sentences, generated, batch_size=50)
    assert (task.train.targets[:50, 4] == -100).all()
    assert (task.train.targets[50:] == (task.train.inputs[50:] + 1) % VOCABULARY).all()
    student = fit(Tagger(), task, Training(epochs=15, batch_size=32, lr=0.05, objective=1.0 * TaskLoss()), run)
    assert float(right_tokens(student(task.test.inputs), task.test.targets).mean()) > 0.99


def test_tokens_that_are_padding_teach_nothing(sentences: Task) -> None:
    task = sentences.with_teacher(Tagger())
    batch = task.train.first(8)
    batch.targets[:, 3:] = -100
    bound = (1.0 * SoftTargets()).bind(Tagger(), task, batch)
    student = Tagger()
    seen = bound.seen(student, batch, task.teacher)
    assert seen.teacher is not None
    before = float(bound(seen).detach())
    seen.teacher.outputs[:, 3:] += torch.randn(8, 2, VOCABULARY)
    assert float(bound(seen).detach()) == before
    seen.teacher.outputs[:, :3] += torch.randn(8, 3, VOCABULARY)
    assert float(bound(seen).detach()) != before


def test_answers_that_do_not_fit_are_told(sentences: Task) -> None:
    with pytest.raises(UserError, match=r"E131.*1 answers for 100 inputs"):
        relabelled(sentences, lambda words: words[:1])
    loader = DataLoader(TensorDataset(sentences.test.inputs, sentences.test.targets), shuffle=True)
    stream = Task(train=loader, validation=sentences.validation, test=sentences.test, loss=tokens_loss, metric=right_tokens)
    with pytest.raises(UserError, match=r"E131.*a stream"):
        relabelled(stream, lambda words: words)
