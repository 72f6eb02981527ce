"""Inputs from which nothing can be learned are told; usual ones are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mirabelle import Task
from mirabelle.task.preprocessing import Table
from mirabelle.task.unusual_inputs import unusual_inputs


def task(inputs: Tensor | dict[str, Tensor], **more: object) -> Task:
    count = len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)
    data = (inputs, torch.arange(count) % 2)
    return Task(train=data, validation=data, test=data, **more)


def draws(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_usual_inputs_are_not_worth_a_word() -> None:
    assert unusual_inputs(task(draws(300, 1, 8, 8))) == []
    assert unusual_inputs(task(draws(300, 5))) == []
    assert (
        unusual_inputs(task({"input_ids": torch.arange(300 * 6).reshape(300, 6), "attention_mask": torch.ones(300, 6)})) == []
    )


@pytest.mark.parametrize("inputs", [torch.zeros(40, 1, 8, 8), draws(1, 7).expand(40, 7), torch.ones(40, 9, dtype=torch.int64)])
def test_inputs_that_are_all_the_same_are_told(inputs: Tensor) -> None:
    assert unusual_inputs(task(inputs.clone())) == ["All training inputs are the same, so nothing can be learned from them."]


def test_inputs_that_are_nearly_the_same_are_told() -> None:
    (found,) = unusual_inputs(task(1000 + 0.01 * draws(40, 3, 4, 4)))
    assert found.startswith("The training inputs are nearly the same")


def test_constant_samples_columns_and_channels_are_told() -> None:
    silent = draws(40, 1, 4, 100)
    silent[:10] = -16.0
    assert unusual_inputs(task(silent)) == [
        "Of the training inputs 10 of 40 are constant or nearly constant: one value at all positions."
    ]
    columns = draws(300, 3)
    columns[:, 1], columns[1:, 2] = 0, 5
    (found,) = unusual_inputs(task(columns, preprocessing=Table(columns=("a", "b", "c"))))
    assert found == "Of the 3 columns of the training inputs, 2 have a single value in at least 99% of the samples: b, c."
    images = draws(40, 3, 4, 4)
    images[:, 2] = 1
    assert unusual_inputs(task(images)) == ["Channel 2 of the training inputs has a single value in all samples."]


@pytest.mark.parametrize(("scale", "told"), [(torch.linspace(0, 1, 40), []), (torch.ones(40), ["scale"])])
def test_one_number_for_each_sample_is_an_input(scale: Tensor, told: list[str]) -> None:
    data = ({"x": draws(40, 5), "scale": scale}, torch.arange(40) % 2)
    found = unusual_inputs(Task(train=data, test=data))
    assert [f'All training inputs "{name}" are the same, so nothing can be learned from them.' for name in told] == found


def test_the_sentences_reach_the_task_that_was_given_notes() -> None:
    assert task(draws(40, 5), notes=["Read in haste."]).with_teacher(None).notes == ("Read in haste.",)
