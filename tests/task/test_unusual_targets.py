"""Classes that no training sample has."""

from __future__ import annotations

import pytest
import torch

from mirabelle import Task
from mirabelle.task.unusual_targets import unusual_targets


def said(train: list[int], test: list[int], **settings: object) -> list[str]:
    x = torch.zeros(1, 2)
    parts = {"train": train, "validation": train, "test": test}
    data = {name: (x.expand(len(part), 2), torch.tensor(part)) for name, part in parts.items()}
    return unusual_targets(Task(**data, **settings))


@pytest.mark.parametrize(
    ("train", "test", "sentences"),
    [
        ([0, 1, 2], [0, 2], []),
        ([1, 2, 3], [1, 2], ["No training sample has class 0; classes are numbered from 0."]),
        ([0, 1, 4], [0, 2], ["No training sample has one of the classes 2, 3."]),
        ([0, 1], [0, 2], ["No training sample has class 2."]),
        ([0, 9], [9], ["No training sample has one of the classes 1, 2, 3, 4, 5, … (8 in all)."]),
        ([0, -100, 2], [0, 2], ["No training sample has class 1."]),
    ],
)
def test_classes_without_training_samples_are_told(train: list[int], test: list[int], sentences: list[str]) -> None:
    assert said(train, test) == sentences


def test_they_are_named_where_names_are_known() -> None:
    assert said([1, 2], [1], labels=("a", "b", "c")) == ['No training sample has class "a".']


def test_tokens_and_numbers_are_left_alone() -> None:
    x = torch.zeros(6, 3)
    assert unusual_targets(Task(train=(x, x.long() + 2), test=(x, x.long() + 2), loss="token_cross_entropy")) == []
    assert unusual_targets(Task(train=(x, torch.full((6,), 2.0)), test=(x, torch.full((6,), 2.0)))) == []
