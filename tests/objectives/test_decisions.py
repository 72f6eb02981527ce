"""What all terms over the teacher's decisions have in common, and what each refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Task, objectives
from mirabelle.batch import Batch
from mirabelle.errors import UserError
from mirabelle.numerics.divergence import soft_target_divergence, standardized
from mirabelle.objectives import DKD, Forward, SoftTargets
from mirabelle.objectives.decisions import Decisions

FAMILY = [
    getattr(objectives, name)
    for name in objectives.__all__
    if isinstance(getattr(objectives, name), type) and issubclass(getattr(objectives, name), Decisions)
]


def drawn(seed: int) -> Tensor:
    return torch.randn(16, 3, generator=torch.Generator().manual_seed(seed))


def value(term: Decisions, task: Task, student: Tensor, teacher: Tensor) -> Tensor:
    batch = task.train.first(16)
    bound = term.bind(nn.Identity(), task, task.example())
    found: Tensor = bound(Forward(batch, student, Forward(batch, teacher)))
    return found


def test_the_family_is_whole() -> None:
    names = {kind.__name__ for kind in FAMILY}
    assert names == {"SoftTargets", "DKD", "DIST", "MLKD", "ReverseKL", "JensenShannon", "MultiLabel", "Regression"}


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(kind: type[Decisions], blobs: Task) -> None:
    student = drawn(0).requires_grad_()
    loss = value(kind(), blobs, student, drawn(0))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-5)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-5


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_descending_the_loss_brings_the_student_to_the_teachers_decisions(kind: type[Decisions], blobs: Task) -> None:
    teacher = 3 * drawn(1)
    student = drawn(2).requires_grad_()
    before = float(value(kind(), blobs, student, teacher).detach())
    optimizer = torch.optim.Adam([student], 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        value(kind(), blobs, student, teacher).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(value(kind(), blobs, student, teacher).detach()) < 0.02 * before
    assert float((student.argmax(1) == teacher.argmax(1)).float().mean()) == 1.0


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_other_classes_are_refused_with_both_shapes(kind: type[Decisions], blobs: Task) -> None:
    with pytest.raises(UserError, match=r"student gives \(3,\) outputs a sample, the teacher \(4,\)"):
        value(kind(), blobs, drawn(0), torch.zeros(16, 4))


def test_standardized_logits_need_only_be_proportional(blobs: Task) -> None:
    term = SoftTargets(temperature=2.0, standardize=True)
    assert float(value(term, blobs, 7 * drawn(0) + 5, drawn(0))) == pytest.approx(0.0, abs=1e-5)
    due = soft_target_divergence(standardized(drawn(0)), standardized(drawn(1)), 2.0)
    assert float(value(term, blobs, drawn(0), drawn(1))) == pytest.approx(float(due), rel=1e-6)


def test_a_sample_with_several_labels_has_no_target_class_to_take_apart(blobs: Task) -> None:
    batch = Batch(torch.zeros(16, 8), torch.rand(16, 3))
    bound = DKD().bind(nn.Identity(), blobs, blobs.example())
    with pytest.raises(UserError, match=r"(?s)DKD needs the one right class of each sample.*MultiLabel"):
        bound(Forward(batch, drawn(0), Forward(batch, drawn(1))))
