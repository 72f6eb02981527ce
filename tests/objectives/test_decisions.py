"""What all terms over the teacher's decisions have in common, and what each refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Task, objectives
from mirabelle.errors import UserError
from mirabelle.numerics.divergence import soft_target_divergence, standardized
from mirabelle.objectives import DKD, Forward, Objective, SoftTargets, TaskLoss
from mirabelle.objectives.decisions import Decisions
from mirabelle.records.schedules import Annealed
from mirabelle.task.batch import Batch

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
    with pytest.raises(UserError, match=r"student gives outputs of shape \(3,\) for each sample, the teacher \(4,\)"):
        value(kind(), blobs, drawn(0), torch.zeros(16, 4))


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_outputs_are_compared_as_what_they_are(kind: type[Decisions]) -> None:
    inputs, yes = torch.zeros(16, 8), torch.arange(16)[:, None] % 2
    refused = {"binary_cross_entropy": kind.compares == "classes", "mse": kind.compares == "classes"}
    refused["torch.nn.functional:binary_cross_entropy"] = kind.compares != "numbers"
    for loss, wrong in refused.items():
        task = Task(train=(inputs, yes.float()), test=(inputs, yes.float()), loss=loss)
        if wrong:
            with pytest.raises(UserError, match=f"E111.*{kind.__name__} (compares classes|takes logits)"):
                kind().bind(nn.Identity(), task, task.example())
        else:
            kind().bind(nn.Identity(), task, task.example())


def test_standardized_logits_need_only_be_proportional(blobs: Task) -> None:
    term = SoftTargets(temperature=2.0, standardize=True)
    assert float(value(term, blobs, 7 * drawn(0) + 5, drawn(0))) == pytest.approx(0.0, abs=1e-5)
    due = soft_target_divergence(standardized(drawn(0)), standardized(drawn(1)), 2.0)
    assert float(value(term, blobs, drawn(0), drawn(1))) == pytest.approx(float(due), rel=1e-6)


def test_a_sample_with_several_labels_has_no_target_class_to_take_apart(blobs: Task) -> None:
    batch = Batch(torch.zeros(16, 8), torch.rand(16, 3))
    bound = DKD().bind(nn.Identity(), blobs, blobs.example())
    with pytest.raises(UserError, match=r"(?s)DKD needs one correct class for each sample.*MultiLabel"):
        bound(Forward(batch, drawn(0), Forward(batch, drawn(1))))


# What changes while a model trains.


def test_a_weight_and_a_temperature_may_change(blobs: Task) -> None:
    objective = Annealed(start=1.0, end=0.0) * SoftTargets(temperature=Annealed(start=8.0, end=2.0)) + 0.5 * TaskLoss()
    task = blobs.with_teacher(nn.Identity())
    bound = objective.bind(nn.Identity(), task, task.example())
    batch = task.train.first(16)
    for progress, weight, temperature in ((0.0, 1.0, 8.0), (0.25, 0.75, 6.5), (1.0, 0.0, 2.0)):
        given = Forward(batch, drawn(0), Forward(batch, drawn(1)), progress=progress)
        due = weight * soft_target_divergence(drawn(0), drawn(1), temperature)
        due = due + 0.5 * task.loss(drawn(0), batch.targets)
        assert float(bound(given)) == pytest.approx(float(due), rel=1e-6)
    assert Objective.from_data(objective.to_data()) == objective
    assert (2.0 * objective).terms[0][0] == Annealed(start=2.0, end=0.0)


@pytest.mark.parametrize(
    ("table", "code", "words"),
    [
        ({"term": "SoftTargets", "weight": {"start": 1.0}}, "E104", 'missing key "weight.end"'),
        ({"term": "SoftTargets", "weight": {"start": 1.0, "end": "low"}}, "E103", '"weight.end" must be a number'),
        (
            {"term": "SoftTargets", "temperature": {"start": 4.0, "end": 1.0, "until": 0.0}},
            "E110",
            r"until must be a number in \(0",
        ),
        ({"term": "SoftTargets", "temperature": {"start": 4.0, "end": 0.0}}, "E110", "temperature must be above 0"),
    ],
    ids=["a key", "a type", "a range", "a temperature"],
)
def test_a_change_that_makes_no_sense_is_told(table: dict[str, Any], code: str, words: str, blobs: Task) -> None:
    with pytest.raises(UserError, match=words) as raised:
        Objective.from_data([table]).bind(nn.Identity(), blobs.with_teacher(nn.Identity()), blobs.example())
    assert raised.value.code == code


def test_a_weight_that_is_zero_at_the_moment_is_no_loss(blobs: Task) -> None:
    task = blobs.with_teacher(nn.Identity())
    objective = Annealed(start=0.0, end=1.0) * (1.0 * SoftTargets() + 2.0 * SoftTargets(temperature=1.0))
    bound = objective.bind(nn.Identity(), task, task.example())
    student = drawn(0).requires_grad_()
    batch = task.train.first(16)
    loss = bound(Forward(batch, student, Forward(batch, drawn(1))))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert [weight.at(1.0) for weight, _ in objective.terms] == [1.0, 2.0]
    with pytest.raises(UserError, match=r"E111.*multiplied by another"):
        Annealed(start=1.0, end=0.0) * objective


def test_classes_stand_second_where_cross_entropy_judges(blobs: Task) -> None:
    """Decisions about pixels, (batch, classes, height, width)."""
    task = blobs.with_teacher(nn.Identity())
    bound = SoftTargets().bind(nn.Identity(), task, task.example())
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(4, 3, 5, 6, generator=generator) for _ in range(2))
    batch = Batch(torch.zeros(4, 1), torch.zeros(4, 5, 6, dtype=torch.long))
    due = soft_target_divergence(one.permute(0, 2, 3, 1).reshape(-1, 3), other.permute(0, 2, 3, 1).reshape(-1, 3), 4.0)
    assert float(bound(Forward(batch, one, Forward(batch, other)))) == pytest.approx(float(due), rel=1e-6)
    batch.targets[:, 0] = -100
    due = soft_target_divergence(one[:, :, 1:].permute(0, 2, 3, 1), other[:, :, 1:].permute(0, 2, 3, 1), 4.0)
    assert float(bound(Forward(batch, one, Forward(batch, other)))) == pytest.approx(float(due), rel=1e-6)
