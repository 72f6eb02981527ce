"""A data set of others that is too large for the memory is read by the numbers of its samples, the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from mirabelle import Run, Task, Training
from mirabelle.errors import UserError
from mirabelle.model.state import copied
from mirabelle.task.indexed import Indexed
from mirabelle.task.large_datasets import read_when_needed
from mirabelle.task.samples import Samples
from mirabelle.training import fit


class Noisy(Dataset[tuple[Tensor, int]]):
    """Images with noise that is drawn anew whenever they are read; counts the samples that were read."""

    def __init__(self, count: int = 60, *, keeps: bool = True) -> None:
        self.read, self.count = 0, count
        if keeps:
            self.targets = [k % 3 for k in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        self.read += 1
        return place + torch.rand(1, 4, 4), place % 3


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirabelle.task.large_datasets.IN_MEMORY", 2000)


def test_samples_are_read_by_number_and_stay_the_same() -> None:
    source = Noisy()
    task = Task(train=source, test=Noisy(30))
    assert isinstance(task.train, Indexed)
    assert isinstance(task.test, Samples)
    assert not isinstance(task.test, Indexed)  # it fits
    index = torch.tensor([7, 3])
    first = task.train.at(index)
    assert torch.equal(first.inputs, task.train.at(index).inputs)
    assert (first.inputs.flatten(1).floor() == (task.train.at(index).inputs.flatten(1)).floor()).all()
    assert not torch.equal(first.inputs[0] - first.inputs[0].floor(), first.inputs[1] - first.inputs[1].floor())
    state = torch.get_rng_state()
    task.train.at(index)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(task.train) + len(task.validation) == 60


def test_targets_that_a_data_set_keeps_are_not_read_sample_by_sample() -> None:
    source, other = Noisy(2000), Noisy(2000, keeps=False)
    found, read = read_when_needed(source), read_when_needed(other)
    assert found is not None
    assert read is not None
    assert torch.equal(found.targets, read.targets)
    assert source.read < 100 < other.read


def test_kept_targets_that_a_transform_changes_are_read() -> None:
    class Shifted(Noisy):
        def __getitem__(self, place: int) -> tuple[Tensor, int]:
            inputs, target = super().__getitem__(place)
            return inputs, 2 - target

    found = read_when_needed(Shifted())
    assert found is not None
    assert found.targets[:4].tolist() == [2, 1, 0, 2]


def test_targets_of_a_folder_in_the_order_of_its_classes_are_compared_in_all_classes() -> None:
    class Merged(Noisy):
        def __init__(self) -> None:
            super().__init__(400)
            self.targets = [k // 100 for k in range(400)]

        def __getitem__(self, place: int) -> tuple[Tensor, int]:
            return super().__getitem__(place)[0], min(self.targets[place], 1)

    found = read_when_needed(Merged())
    assert found is not None
    assert set(found.targets.tolist()) == {0, 1}

    class Told(Noisy):
        target_transform = abs

    told = Told(500)
    read_when_needed(told)
    assert told.read > 500


def test_targets_in_words_and_data_without_a_length() -> None:
    class Words(Noisy):
        def __init__(self) -> None:
            super().__init__(keeps=False)
            self.labels = ["cat"] * 60

    found = read_when_needed(Words())
    assert found is not None
    assert found.targets[:3].tolist() == [0, 1, 2]

    class Endless(Noisy):
        def __len__(self) -> int:
            raise NotImplementedError

    assert read_when_needed(Endless()) is None


def test_equal_trainings_give_equal_weights_though_samples_draw(tmp_path: Path) -> None:
    """Samples that draw are read by the thread of the training, so that dropout draws what it would without them."""

    class Slow(Noisy):
        def __getitem__(self, place: int) -> tuple[Tensor, int]:
            for _ in range(50):
                torch.rand(100)
            return super().__getitem__(place)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 3))
    task = Task(train=Slow(200), test=Noisy(30))
    training = Training(epochs=2, batch_size=20, precision="float32")
    found = [fit(copied(model), task, training, Run(tmp_path / str(k), seed=1)) for k in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*(one.parameters() for one in found), strict=True))


def test_dicts_and_identity() -> None:
    class Named(Noisy):
        def __getitem__(self, place: int) -> Any:
            inputs, target = super().__getitem__(place)
            return {"pixels": inputs, "mask": torch.ones(4, dtype=torch.long), "labels": target}

    found, again = read_when_needed(Named()), read_when_needed(Named())
    assert found is not None
    assert again is not None
    assert found.first(2).inputs.keys() == {"pixels", "mask"}
    assert found.digest() == again.digest() != read_when_needed(Noisy()).digest()  # type: ignore[union-attr]
    assert read_when_needed(TensorDataset(torch.zeros(10, 2), torch.zeros(10))) is None


def test_a_sample_that_cannot_be_read_is_told() -> None:
    class Broken(Noisy):
        def __getitem__(self, place: int) -> tuple[Tensor, int]:
            if place == 141:
                raise OSError("41.jpg is truncated")
            return super().__getitem__(place)

    with pytest.raises(UserError, match=r"E131.*OSError: 41.jpg is truncated"):
        read_when_needed(Broken(400, keeps=False))
    kept = read_when_needed(Broken(400))
    assert kept is not None
    with pytest.raises(UserError, match=r"E131.*OSError: 41.jpg is truncated"):
        kept.at(torch.tensor([141]))
