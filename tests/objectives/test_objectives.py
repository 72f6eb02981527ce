"""Contract of the family of terms, run over its door, and the truth of each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Task, objectives
from mirabelle.errors import UserError
from mirabelle.objectives import L1, L2, Forward, Objective, SoftTargets, TaskLoss, Term
from mirabelle.task.batch import Batch
from students import pair_for

TERMS = [
    getattr(objectives, name)
    for name in objectives.__all__
    if isinstance(getattr(objectives, name), type) and issubclass(getattr(objectives, name), Term) and name != "Term"
]


def forward(model: nn.Module, task: Task, teacher: Tensor | None = None) -> Forward:
    batch = task.train.first(16)
    return Forward(batch, model(batch.inputs), Forward(batch, teacher) if teacher is not None else None)


def test_the_door_has_terms() -> None:
    assert {"L1", "L2", "SoftTargets", "TaskLoss"} <= {term.__name__ for term in TERMS}


@pytest.mark.parametrize("kind", TERMS, ids=lambda kind: kind.__name__)
def test_every_term_gives_a_finite_scalar_with_a_gradient(kind: type[Term], images: Task) -> None:
    student, task = pair_for(kind, images)
    bound = (1.0 * kind()).bind(student, task, task.example())
    value = bound(bound.seen(student, task.train.first(16), task.teacher))
    assert value.shape == ()
    value.backward()
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    assert any(float(gradient.abs().sum()) > 0 for gradient in gradients)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert not set(student.parameters()) & set(bound.parameters()), "a term must not own the model's parameters"


@pytest.mark.parametrize("kind", TERMS, ids=lambda kind: kind.__name__)
def test_every_term_goes_through_plain_data(kind: type[Term]) -> None:
    objective = 0.25 * kind() + 2.0 * TaskLoss()
    assert Objective.from_data(objective.to_data()) == objective


def test_an_objective_is_the_weighted_sum_of_its_terms(mlp: nn.Module, blobs: Task) -> None:
    task = blobs.with_teacher(mlp)
    record = forward(mlp, task, torch.randn(16, 3))
    alpha = 0.7
    objective = alpha * SoftTargets(temperature=2.0) + (1 - alpha) * TaskLoss() + 1e-3 * L1()
    parts = [term.bind(mlp, task, task.example())(record) for _, term in objective.terms]
    expected = alpha * parts[0] + (1 - alpha) * parts[1] + 1e-3 * parts[2]
    assert objective.bind(mlp, task, task.example())(record).item() == pytest.approx(expected.item(), rel=1e-6)


def test_objectives_add_and_scale() -> None:
    objective = 2.0 * (TaskLoss() + 0.5 * L2())
    assert objective.terms == ((2.0, TaskLoss()), (1.0, L2()))


def test_the_soft_targets_of_the_teacher_itself_cost_nothing(mlp: nn.Module, blobs: Task) -> None:
    task = blobs.with_teacher(mlp)
    batch = task.train.first(16)
    same = Forward(batch, mlp(batch.inputs), Forward(batch, mlp(batch.inputs)))
    assert SoftTargets().bind(mlp, task, batch)(same).item() == pytest.approx(0.0, abs=1e-6)


def test_l1_and_l2_are_sums_over_the_chosen_weights(mlp: nn.Sequential, blobs: Task) -> None:
    record = forward(mlp, blobs)
    weights = [mlp[0].weight, mlp[2].weight]
    value = L1().bind(mlp, blobs, record.batch)(record).item()
    assert value == pytest.approx(sum(float(weight.detach().abs().sum()) for weight in weights), rel=1e-6)
    value = L2(include=("2.*",)).bind(mlp, blobs, record.batch)(record).item()
    assert value == pytest.approx(float(sum(p.detach().square().sum() for p in mlp[2].parameters())), rel=1e-6)


def test_a_term_that_needs_a_teacher_is_refused_without_one(mlp: nn.Module, blobs: Task) -> None:
    with pytest.raises(UserError, match=r"SoftTargets needs a teacher"):
        (1.0 * SoftTargets()).bind(mlp, blobs, blobs.example())


def test_a_teacher_with_other_classes_is_refused(mlp: nn.Module, blobs: Task) -> None:
    with pytest.raises(UserError, match=r"student gives outputs of shape \(3,\) for each sample, the teacher \(5,\)"):
        SoftTargets().bind(mlp, blobs, blobs.example())(forward(mlp, blobs, torch.randn(16, 5)))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({}, "E103"),
        ([], "E103"),
        ([{"weight": 1.0}], "E104"),
        ([{"term": "TaskLos"}], "E106"),
        ([{"term": "Forward"}], "E106"),
        ([{"term": "TaskLoss", "weight": "much"}], "E103"),
        ([{"term": "SoftTargets", "temperatur": 2.0}], "E102"),
        ([{"term": "SoftTargets", "temperature": 0.0}], "E110"),
    ],
)
def test_objectives_that_cannot_be_read_are_refused(data: object, code: str) -> None:
    with pytest.raises(UserError) as caught:
        Objective.from_data(data)
    assert caught.value.code == code


def test_the_terms_serve_in_a_loop_of_ones_own(mlp: nn.Module, blobs: Task) -> None:
    objective = (0.5 * TaskLoss() + 0.5 * SoftTargets()).bind(mlp, blobs.with_teacher(mlp), blobs.example())
    optimizer = torch.optim.SGD(mlp.parameters(), 0.1)
    losses = []
    for _ in range(20):
        batch: Batch = blobs.train.first(400)
        loss = objective(Forward(batch, mlp(batch.inputs), Forward(batch, torch.eye(3)[batch.targets] * 5)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
