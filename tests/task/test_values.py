"""Types of data: each is taken with its one meaning, which a model made by hand shows, or refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mirabelle import Task
from mirabelle.errors import UserError
from mirabelle.job.dry_run import try_one_batch

COUNT = 60
X = np.random.default_rng(0).normal(size=(COUNT, 4)).astype(np.float32)
Y = (X[:, 0] + 0.8 * X[:, 1] > 0).astype(np.int64)
WORDS = np.array(["no", "yes"])[Y]
RIGHT = float(((X[:, 0] > 0) == (Y == 1)).mean())  # of a model that looks at column 0 alone
GAPS = np.ma.array(X, mask=np.arange(X.size).reshape(X.shape) == 7)


class Column:
    """A column of a table, as pandas answers."""

    def __init__(self, values: Any, dtype: str = "int64", categories: tuple[str, ...] = ()) -> None:
        self.values, self.dtype, self.categories = values, dtype, categories
        if categories:
            self.cat = self

    def __iter__(self):
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def isna(self) -> np.ndarray:
        return np.array([value is None for value in self.values])

    def to_numpy(self) -> np.ndarray:
        return np.array(self.values, object if self.dtype[0].isupper() else None)


def objects(rows: list[np.ndarray]) -> np.ndarray:
    array = np.empty(len(rows), object)
    for k, row in enumerate(rows):
        array[k] = row
    return array


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.setflags(write=False)
    return array


def first_column() -> nn.Module:
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
        model.weight[1, 0] = 1.0
    return model


class Frame:
    """A table, as pandas answers."""

    dtypes = None

    def __init__(self, **other: Column) -> None:
        self.parts = {name: Column(X[:, k], "float32") for k, name in enumerate("abcd")} | other
        self.columns = list(self.parts)

    def __getitem__(self, name: str) -> Column:
        return self.parts[name]


TAKEN: dict[str, tuple[Any, Any]] = {
    **{f"{kind} labels": (X, Y.astype(kind)) for kind in ("int32", "int16", "uint8", "uint16", "uint64", "bool", ">i8")},
    **{f"{kind} inputs": (X.astype(kind), Y) for kind in ("float64", ">f4")},
    "float16 inputs": (X.astype(np.float16), Y),
    "double tensors": (torch.tensor(X).double(), torch.tensor(Y)),
    "bfloat16 tensors": (torch.tensor(X).bfloat16(), torch.tensor(Y).short()),
    "a tensor with gradient": (torch.tensor(X).requires_grad_(), torch.tensor(Y)),
    "reversed rows": (X[::-1], Y[::-1]),
    "a column of labels": (X, Y[:, None]),
    "one-hot": (X, np.eye(2)[Y]),
    "lists": (X.tolist(), Y.tolist()),
    "lists of tensors": ([torch.tensor(row) for row in X], [torch.tensor(one) for one in Y]),
    "tuples of arrays": (tuple(X), tuple(Y)),
    "truth values": (X, [bool(one) for one in Y]),
    "objects": (X.astype(object), Y.astype(object)),
    "objects of equal shapes": (objects(list(X)), Y),
    "nothing masked": (np.ma.array(X), Y),
    "read-only": (read_only(X), Y),
    "words": (X, WORDS),
    "words as objects": (X, WORDS.astype(object)),
    "words in a list": (X, WORDS.tolist()),
    "words in bytes": (X, WORDS.astype("S")),
    "categories": (X, Column(WORDS.tolist(), "category", ("no", "yes"))),
    "whole numbers that can have gaps": (X, Column(Y.tolist(), "Int64")),
    "a table": (Frame(), Y),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_has_the_accuracy_of_the_plain_arrays(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task, model = Task(train=TAKEN[name], test=TAKEN[name]), first_column()
    try_one_batch(model, task)
    outputs = model(task.test.inputs).detach()
    assert (task.metric.name, task.test.targets.dtype) == ("accuracy", torch.int64)
    value = task.metric.value(task.metric.of_samples(outputs, task.test.targets, task.outputs))
    assert value == pytest.approx(RIGHT)
    assert task.labels == (("no", "yes") if "words" in name or "categories" in name else ())


@pytest.mark.parametrize("targets", [torch.tensor(Y).bfloat16(), torch.tensor(Y, dtype=torch.float32).requires_grad_()])
def test_targets_of_numbers_that_numpy_has_not_are_taken(targets: torch.Tensor) -> None:
    task = Task(train=(X, targets), test=(X, targets), loss="binary_cross_entropy")
    assert task.test.targets.dtype == torch.float32
    assert task.test.targets.tolist() == Y.tolist()
    assert not task.test.targets.requires_grad


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "one-hot whole numbers": (X, np.eye(2, dtype=int)[Y], r"E131.*one-hot.*\n.*argmax"),
    "one-hot truth values": (X, np.eye(2, dtype=bool)[Y], r"E131.*one-hot"),
    "several yes or no": (X, np.ones((COUNT, 2), int), r"E131.*0 and 1 for each output.*\n.*binary_cross_entropy"),
    "float classes": (X, Y.astype(np.float32), r"E131.*each output needs one target.*\n.*int64"),
    "labels from 1": (X, Y + 1, r"E132.*1 to 2\n.*subtract 1"),
    "labels below 0": (X, Y - 1, r"E132.*-1 to 0"),
    "labels with a gap": (X, 2 * Y, r"E132.*0 to 2"),
    "bytes as inputs": ((X * 20 + 128).astype(np.uint8), Y, r"E121.*uint8.*\n.*x\.float\(\) / 255"),
    "complex": (X.astype(complex), Y, "E131.*complex numbers"),
    "a complex tensor": (torch.tensor(X).cfloat(), Y, "E131.*complex tensor"),
    "a sparse tensor": (torch.tensor(X).to_sparse(), Y, r"E131.*sparse tensor\n.*to_dense"),
    "sparse targets": (X, torch.tensor(Y).to_sparse(), r"E131.*targets are a sparse tensor"),
    "a nested tensor": (
        torch.nested.nested_tensor(list(torch.tensor(X)), layout=torch.jagged),
        Y,
        r"E131.*nested tensor\n.*to_padded_tensor",
    ),
    "a tensor without values": (torch.tensor(X, device="meta"), Y, "E131.*meta tensor"),
    "targets without values": (X, torch.tensor(Y, device="meta"), "E131.*targets are a meta tensor"),
    "dates": (np.full((COUNT, 4), "2020-01-01", "M8[D]"), Y, "E131.*dates"),
    "dates as targets": (X, np.full(COUNT, "2020-01-01", "M8[D]"), "E131.*targets.*dates"),
    "a structured array": (np.zeros(COUNT, [("a", "f4"), ("b", "f4")]), Y, "E131.*structured array with the fields a, b"),
    "ragged objects": (objects([X[k][: 3 + k % 2] for k in range(COUNT)]), Y, r"E131.*different shapes: \(3,\), \(4,\)"),
    "ragged lists": ([[1.0] * (2 + k % 2) for k in range(COUNT)], Y, "E131.*different lengths"),
    "masked values": (GAPS, Y, "E131.*1 masked"),
    "nan": (np.where(GAPS.mask, np.nan, X), Y, "E131.*NaN or infinite values in 1 of 60 samples, first in sample 1"),
    "too large for float32": (X.astype(float) * 1e300, Y, "E131.*infinite values in 60 of 60"),
    "too large for int64": (X, np.full(COUNT, 2**63, np.uint64), "E131.*9223372036854775808, more than int64"),
    "no targets": (X, [None] * COUNT, "E131.*NoneType"),
    "missing whole numbers": (X, Column([None, *Y.tolist()[1:]], "Int64"), "E131.*1 missing"),
    "missing categories": (X, Column([None, *WORDS.tolist()[1:]], "category", ("no", "yes")), "E131.*1 targets are missing"),
    "a table with words": (Frame(city=Column(WORDS.tolist(), "str")), Y, 'E131.*column "city".*texts'),
    "a table with categories": (Frame(city=Column(WORDS.tolist(), "category", ("no", "yes"))), Y, 'E131.*column "city".*categ'),
    "words and numbers": (X, ["a", 1] * 30, "E131.*texts"),
    "words as inputs": (WORDS, Y, r"E131.*texts.*\n.*tokens"),
    "a single number": (torch.tensor(1.0), torch.tensor(1), "E131.*a single number"),
    "nothing": (X[:0], Y[:0], "E131.*above 0"),
    "one sample": (X[:1], Y[:1], r"E131.*single sample cannot be split"),
    "several targets": (X, (Y, X[:, :3]), "E131.*one tensor; got a tuple of 2"),
    "targets by name": (X, {"a": Y, "b": Y}, "E131.*one tensor; got a dict of 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named_before_anything_is_trained(name: str) -> None:
    inputs, targets, words = REFUSED[name]
    with pytest.raises(UserError, match=words):
        try_one_batch(first_column(), Task(train=(inputs, targets), test=(inputs, targets)))


def test_images_of_bytes_are_refused_with_the_remedy_of_floats() -> None:
    images, model = torch.zeros(20, 3, 8, 8, dtype=torch.uint8), nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten())
    with pytest.raises(UserError, match=r"E121.*uint8.*\n.*x\.float\(\) / 255"):
        try_one_batch(model, Task(train=(images, torch.arange(20) % 2), test=(images, torch.arange(20) % 2)))


def test_rows_of_two_tables_must_have_the_same_names() -> None:
    class Named(np.ndarray):
        index: Any = None

    class Names(tuple):
        __slots__ = ()
        equals = tuple.__eq__

    x, y = X.view(Named), Y.view(Named)
    x.index, y.index = Names(range(COUNT)), Names(range(1, COUNT + 1))
    with pytest.raises(UserError, match=r"E131.*different names"):
        Task(train=(x, y), test=(X, Y))
    y.index = Names(range(COUNT))
    assert len(Task(train=(x, y), test=(X, Y)).test) == COUNT


def test_classes_named_by_words_have_the_same_numbers_in_all_splits() -> None:
    train, test = (X, WORDS), (X[:3], ["yes", "yes", "no"])
    assert Task(train=train, test=test).test.targets.tolist() == [1, 1, 0]
    given = Task(train=train, test=test, labels=("yes", "no"))
    assert (given.labels, given.test.targets.tolist()) == (("yes", "no"), [0, 0, 1])
    with pytest.raises(UserError, match=r'E132.*test data have the class "maybe"'):
        Task(train=train, test=(X[:1], ["maybe"]))
    with pytest.raises(UserError, match=r"E131.*train data are words, those of the test data are not"):
        Task(train=train, test=(X, Y))
    other = Column(WORDS.tolist(), "category", ("yes", "no"))
    with pytest.raises(UserError, match=r"E131.*different categories"):
        Task(train=(X, TAKEN["categories"][1]), test=(X, other))


def test_one_hot_targets_are_said_and_only_changed_where_classes_are_meant() -> None:
    rows = np.eye(2)[Y]
    assert "class indices" in Task(train=(X, rows), test=(X, rows)).notes[0]
    assert Task(train=(X, rows), test=(X, rows), loss="mse").metric.name == "r2"
    assert Task(train=(X, rows), test=(X, rows), labels=("a", "b")).metric.name == "f1"
    smooth = Task(train=(X, rows), test=(X, rows), loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    assert torch.equal(smooth.test.targets, torch.tensor(Y))


@pytest.mark.parametrize("change", [lambda y: np.eye(2)[y], lambda y: y.astype("i2")[:, None]], ids=["one-hot", "a column"])
def test_a_loader_that_shuffles_is_changed_batch_by_batch(change: Callable[[np.ndarray], np.ndarray]) -> None:
    data = TensorDataset(torch.tensor(X).double(), torch.tensor(change(Y)))
    task = Task(train=DataLoader(data, batch_size=20, shuffle=True), validation=data, test=data)
    batch = next(iter(task.train.batches(0)))
    assert (batch.inputs.dtype, batch.targets.dtype, batch.targets.shape) == (torch.float32, torch.int64, (20,))
    assert task.test.targets.tolist() == Y.tolist()


def test_what_a_data_set_raises_is_one_line() -> None:
    class Backwards(TensorDataset):
        def __getitem__(self, k: int) -> Any:
            return X[k][::-1], Y[k]

    with pytest.raises(UserError, match=r"E131.*data set or its loader raised ValueError"):
        Task(train=Backwards(torch.tensor(X), torch.tensor(Y)), test=(X, Y))


def test_a_memory_map_is_not_copied(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    task = Task(train=(X, Y), test=(mapped, Y))
    assert task.test.inputs.data_ptr() == mapped.ctypes.data
