"""Batches, tasks and metrics."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from mirabelle import Task
from mirabelle.errors import UserError
from mirabelle.task.batch import call, tensors_of
from mirabelle.task.given_data import data_of
from mirabelle.task.metric import Metric
from mirabelle.task.read_once import notes_on_reading
from mirabelle.task.samples import Samples, Stream


class Endless(IterableDataset):
    """Samples without end."""

    def __iter__(self):
        return iter(())


def points(count: int = 10) -> tuple[Tensor, Tensor]:
    return torch.arange(count * 2.0).reshape(count, 2), torch.arange(count) % 2


def test_an_epoch_holds_every_sample_once_in_an_order_that_the_seed_decides() -> None:
    samples = Samples(*points(12))
    order = [samples.shuffled(4, seed=1)[k].index.tolist() for k in range(3)]
    assert sorted(index for batch in order for index in batch) == list(range(12))
    assert order == [samples.shuffled(4, seed=1)[k].index.tolist() for k in range(3)]
    assert order != [samples.shuffled(4, seed=2)[k].index.tolist() for k in range(3)]


def test_a_batch_knows_which_samples_it_holds() -> None:
    inputs, targets = points(12)
    batch = Samples(inputs, targets).shuffled(5, seed=0)[1]
    assert torch.equal(batch.inputs, inputs[batch.index])
    assert torch.equal(batch.targets, targets[batch.index])


def test_inputs_may_be_tuples_and_dicts() -> None:
    inputs, targets = points()
    for structure in ((inputs, inputs + 1), {"a": inputs, "b": inputs + 1}):
        batch = Samples(structure, targets).first(3)
        assert [tensor.shape for tensor in tensors_of(batch.inputs)] == [(3, 2), (3, 2)]
        assert torch.equal(call(lambda a, b: b - a, batch.inputs), torch.ones(3, 2))


def test_a_split_is_a_partition_and_always_the_same() -> None:
    samples = Samples(*points(20))
    rest, held = samples.split(0.25, seed=3)
    assert sorted([*rest.inputs[:, 0].tolist(), *held.inputs[:, 0].tolist()]) == samples.inputs[:, 0].tolist()
    assert len(held) == 5
    assert torch.equal(samples.split(0.25, seed=3)[1].inputs, held.inputs)


def test_digests_see_every_value() -> None:
    inputs, targets = points()
    changed = inputs.clone()
    samples = Samples(changed, targets)
    before = samples.digest()
    changed[9, 1] += 1
    assert samples.digest() != before
    assert Samples(inputs, targets).digest() == Samples(inputs.clone(), targets).digest()
    assert Samples(inputs, targets).digest() != Samples(changed, targets).digest()


def test_a_sequential_loader_is_read_into_memory_and_a_shuffling_one_streams() -> None:
    data = TensorDataset(*points())
    assert isinstance(data_of(DataLoader(data, batch_size=3)), Samples)
    assert torch.equal(data_of(DataLoader(data, batch_size=3)).inputs, points()[0])
    assert torch.equal(data_of(data).targets, points()[1])
    stream = data_of(DataLoader(data, batch_size=3, shuffle=True))
    assert isinstance(stream, Stream)
    assert [len(batch) for batch in stream.batches(99)] == [3, 3, 3, 1]
    assert all(batch.index is None for batch in stream.batches(99))


class Flipped(TensorDataset):
    """Samples that are changed at random by torch, NumPy or Python each time they are read."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__(*points(20))
        self.draw = draw

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(k)
        return (x.flip(0) if self.draw() < 0.5 else x), y


DRAWS = {"torch": lambda: float(torch.rand(())), "numpy": np.random.random, "python": random.random}


@pytest.mark.parametrize("name", DRAWS)
def test_random_changes_that_are_frozen_are_told(name: str) -> None:
    data, still = Flipped(DRAWS[name]), TensorDataset(*points(20))
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    frozen, judged = Task(train=DataLoader(data, batch_size=4), test=data, validation=still).notes
    assert re.match(r"The train data change each time.*\(\d+ of 16 samples.*every epoch sees the same", frozen)
    judged_again = r"The test data change each time.*judged on the values of one reading"
    assert re.match(judged_again, judged)
    assert Task(train=DataLoader(data, shuffle=True), validation=still, test=DataLoader(still)).notes == ()
    seed = {"torch": torch.manual_seed, "numpy": np.random.seed, "python": random.seed}[name]
    seed(0)
    first = DRAWS[name]()
    seed(0)
    assert re.match(judged_again, notes_on_reading({"test": data}, {"test": Samples(*points(20))})[0])
    assert DRAWS[name]() == first  # the samples that were read again left no trace


def test_samples_that_a_loader_leaves_out_or_repeats_are_told() -> None:
    data = TensorDataset(*points(20))
    again = RandomSampler(data, replacement=True)
    short = DataLoader(data, batch_size=8, drop_last=True)
    task = Task(train=short, validation=DataLoader(data, sampler=again), test=data)
    assert task.notes == (
        "The loader of the train data gives 16 of the 20 samples of its data set.",
        "The loader of the validation data draws with replacement: some samples count several times, others not at all.",
    )


def test_batches_may_be_dicts() -> None:
    x, y = points()
    rows = [{"pixels": row, "label": target} for row, target in zip(x, y, strict=True)]
    found = data_of(DataLoader(rows, batch_size=7))
    assert isinstance(found, Samples)
    assert torch.equal(found.inputs, x)
    assert torch.equal(found.targets, y)
    two = data_of(DataLoader([{**row, "mask": torch.ones(2)} for row in rows], batch_size=7, shuffle=True)).first(3)
    assert set(two.inputs) == {"pixels", "mask"}
    for wrong in ({"pixels": x[0]}, {"label": y[0]}):
        with pytest.raises(UserError, match=r"E131.*a batch is a dict of"):
            data_of(DataLoader([wrong]))


def test_tables_of_hugging_face_are_read_as_tensors() -> None:
    x, y = points()

    class Rows:  # as `datasets.Dataset` answers
        column_names = ("pixels", "labels")

        def __init__(self, kind: str | None = None) -> None:
            self.kind = kind

        def with_format(self, kind: str) -> Rows:
            return Rows(kind)

        def __len__(self) -> int:
            return len(y)

        def __getitem__(self, k: int) -> dict[str, object]:
            row = {"pixels": x[k], "labels": y[k]}
            return row if self.kind == "torch" else {name: part.tolist() for name, part in row.items()}

    found = data_of(Rows())
    assert isinstance(found, Samples)
    assert torch.equal(found.inputs, x)
    assert torch.equal(found.targets, y)


def test_what_models_are_judged_on_is_read_once() -> None:
    data = TensorDataset(*points())
    task = Task(train=points(), validation=DataLoader(data, shuffle=True), test=DataLoader(data, shuffle=True))
    assert isinstance(task.test, Samples)
    assert isinstance(task.validation, Samples)
    assert sorted(task.test.inputs[:, 0].tolist()) == points()[0][:, 0].tolist()


def test_arrays_are_taken_too() -> None:
    inputs, targets = points()
    task = Task(train=(inputs.numpy(), targets.numpy()), test=(inputs, targets))
    assert len(task.train) + len(task.validation) == 10


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ((torch.zeros(3, 2), torch.zeros(2)), "the same length"),
        ((torch.zeros(0, 2), torch.zeros(0)), "the same length, above 0"),
        ((torch.tensor([[float("nan")]]), torch.zeros(1)), "NaN"),
        (("words", torch.zeros(1)), "must be tensors"),
        (42, "data must be"),
        (DataLoader(Endless()), "has no length"),
        (Endless(), "has no length"),
    ],
)
def test_data_that_cannot_be_used_are_refused(source: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        data_of(source)


def test_a_shuffling_loader_needs_a_validation_split() -> None:
    loader = DataLoader(TensorDataset(*points()), shuffle=True)
    with pytest.raises(UserError, match="cannot be split"):
        Task(train=loader, test=points())


def test_an_unknown_loss_or_metric_is_named() -> None:
    with pytest.raises(UserError, match='loss "crossentropy" is not known'):
        Task(train=points(), test=points(), loss="crossentropy")
    with pytest.raises(UserError, match='metric "acuracy" is not known'):
        Task(train=points(), test=points(), metric="acuracy")


def test_accuracy_counts_hits_and_squared_error_is_negative() -> None:
    outputs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert Metric.of("accuracy").of_samples(outputs, torch.tensor([0, 1, 1])).tolist() == [1.0, 1.0, 0.0]
    scores = Metric.of("negative_squared_error").of_samples(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 3.0]))
    assert scores.tolist() == [-1.0, 0.0]
    measured = Metric.of("accuracy").measured(np.array([1.0, 0.0]))
    assert (measured.value, measured.n, measured.name) == (0.5, 2, "accuracy")


def test_a_metric_that_is_not_one_score_a_sample_is_refused() -> None:
    with pytest.raises(UserError, match="one score for each sample"):
        Metric.of(lambda outputs, targets: outputs.mean()).of_samples(torch.zeros(3, 2), torch.zeros(3))
