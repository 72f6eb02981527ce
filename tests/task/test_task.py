"""A task never changes: what differs is another task, whose parts fit each other as the constructor has it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Task
from mirabelle.errors import UserError
from mirabelle.task import Metric, Samples
from mirabelle.task.augmentation import Augmentation
from mirabelle.task.loss import LOSSES
from mirabelle.task.preprocessing import Image


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    return torch.randn(40, 3), torch.randint(0, 2, (40,))


@pytest.mark.parametrize("name", [one.name for one in dataclasses.fields(Task)])
def test_no_attribute_can_be_assigned(name: str, data: tuple[Tensor, Tensor]) -> None:
    task = Task(train=data, test=data)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(task, name, getattr(task, name))
    with pytest.raises(dataclasses.FrozenInstanceError):
        delattr(task, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train", Samples(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))),
        ("metric", Metric.of("f1")),
        ("loss", LOSSES["token_cross_entropy"]),
        ("teacher", nn.Linear(3, 2)),
    ],
)
def test_a_derived_task_differs_in_what_is_named_alone(name: str, value: Any, data: tuple[Tensor, Tensor]) -> None:
    task = Task(train=data, test=data)
    before = dict(vars(task))
    other = task.replace(**{name: value})
    assert getattr(other, name) is value
    assert vars(task) == before
    assert {key: kept for key, kept in vars(other).items() if key != name} == {
        key: kept for key, kept in before.items() if key != name
    }


def test_a_name_that_a_task_does_not_have_is_refused(data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(TypeError, match="epochs"):
        Task(train=data, test=data).replace(epochs=3)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"augment": Augmentation(flip=True)}, "E131"),
        ({"preprocessing": Image(size=(8, 8))}, "E131"),
        ({"metric": Metric.bleu(str)}, "E111"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], code: str, data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError) as raised:
        Task(train=data, test=data).replace(**changes)
    assert raised.value.code == code
