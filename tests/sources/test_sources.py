from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mirabelle import Task
from mirabelle.errors import UserError
from mirabelle.records.functions import function_from
from mirabelle.sources import model_from, task_from
from mirabelle.sources.checks import check_function
from mirabelle.sources.datasets.digits import digits
from mirabelle.sources.datasets.mnist import mnist


def test_factories_come_from_packages_and_from_files(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import torch\ndef net(width):\n    return torch.nn.Linear(2, width)\n")
    assert isinstance(model_from("mirabelle.sources.zoo:lenet300", {}, tmp_path), nn.Sequential)
    assert model_from("./mine.py:net", {"width": 7}, tmp_path).out_features == 7


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("lenet5", "E130", "no model at lenet5"),
        ("no.such.module:net", "E120", "cannot be imported"),
        ("mirabelle.sources.zoo:lenet55", "E120", 'no function "lenet55"'),
        ("./absent.py:net", "E120", "no Python file"),
        ("./broken.py:net", "E120", "raised ZeroDivisionError"),
        ("./mine.py:fails", "E120", "raised ValueError: no luck"),
        ("./mine.py:number", "E121", "returned int"),
    ],
)
def test_a_factory_that_fails_is_named(tmp_path: Path, name: str, code: str, words: str) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\ndef net(): ...\n")
    (tmp_path / "mine.py").write_text("def fails():\n    raise ValueError('no luck')\ndef number():\n    return 3\n")
    with pytest.raises(UserError, match=words) as caught:
        model_from(name, {}, tmp_path)
    assert caught.value.code == code


def test_the_digits_are_always_split_alike() -> None:
    one, two = digits(), digits()
    assert (len(one.train), len(one.validation), len(one.test)) == (1197, 200, 400)
    assert one.fingerprint() == two.fingerprint()
    assert one.train.inputs.shape == (1197, 1, 8, 8)
    assert float(one.train.inputs.min()) == 0.0
    assert float(one.train.inputs.max()) == 1.0


def test_a_factory_that_asks_for_the_folder_of_data_is_given_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.py").write_text(
        "import torch, mirabelle\n"
        "def task(data_dir, n=4):\n"
        "    x = torch.zeros(n, 2)\n"
        "    return mirabelle.Task(train=(x, x), test=(x, x), loss='mse', name=str(data_dir))\n"
    )
    folder = tmp_path / "sets"
    task = task_from("./data.py:task", {"n": 10}, data_folder=folder, folder=tmp_path)
    assert (task.name, len(task.test)) == (str(folder), 10)
    monkeypatch.delenv("MIRABELLE_DATA", raising=False)
    with pytest.raises(UserError, match="--data-dir") as caught:
        task_from("./data.py:task", {}, data_folder=None, folder=tmp_path)
    assert caught.value.code == "E130"


def test_tasks_come_by_name_or_from_a_function(tmp_path: Path) -> None:
    assert task_from("digits", {}, data_folder=None, folder=tmp_path).name == "digits"
    (tmp_path / "data.py").write_text(
        "import torch, mirabelle\n"
        "def task(n):\n    x = torch.zeros(n, 2)\n    return mirabelle.Task(train=(x, x), test=(x, x), loss='mse')\n"
        "def other():\n    return 1\n"
    )
    assert isinstance(task_from("./data.py:task", {"n": 20}, data_folder=None, folder=tmp_path), Task)
    for name, code in (("./data.py:other", "E131"), ("./data.py:task", "E120"), ("mnst", "E130")):
        with pytest.raises(UserError) as caught:
            task_from(name, {}, data_folder=None, folder=tmp_path)
        assert caught.value.code == code
    with pytest.raises(UserError, match='"tasc"'):
        function_from("./data.py:tasc", tmp_path)


def test_mnist_needs_its_place_and_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIRABELLE_DATA", raising=False)
    with pytest.raises(UserError, match="--data-dir FOLDER, or set MIRABELLE_DATA"):
        task_from("mnist", {}, data_folder=None, folder=tmp_path)
    with pytest.raises(UserError, match=r"no train-images-idx3-ubyte.gz"):
        task_from("mnist", {}, data_folder=tmp_path, folder=tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "other header", "no gzip"])
def test_damaged_mnist_files_are_named(tmp_path: Path, damage: str) -> None:
    header = np.array([0x803, 60_000, 28, 28], dtype=">u4").tobytes()
    content = {
        "truncated": gzip.compress(header + b"\0" * 100),
        "other header": gzip.compress(b"\0" * 16),
        "no gzip": b"\0" * 50,
    }[damage]
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(UserError, match="E131"):
        mnist(tmp_path)


def test_mnist_reads_idx_files(tmp_path: Path) -> None:
    for name, count in (("train", 60_000), ("t10k", 10_000)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 0, 0] = 255
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, magic, values in (("images-idx3", 0x803, images), ("labels-idx1", 0x801, labels)):
            header = np.array([magic, *values.shape], dtype=">u4").tobytes()
            (tmp_path / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes(), 1))
    task = mnist(tmp_path)
    assert (len(task.train), len(task.validation), len(task.test)) == (55_000, 5_000, 10_000)
    assert task.test.inputs[0, 0, 0, 0].item() == pytest.approx((1 - 0.1307) / 0.3081, rel=1e-5)
    assert task.test.inputs[0, 0, 5, 5].item() == pytest.approx(-0.1307 / 0.3081, rel=1e-5)
    assert torch.equal(task.test.targets[:12], torch.arange(12) % 10)


@pytest.mark.slow
def test_the_real_mnist_is_the_real_mnist(data_folder: Path) -> None:
    task = mnist(data_folder)
    assert torch.bincount(task.test.targets).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.parametrize("code", ["net = dict", "def net(): ...", "class net: ...", "import os as net", "from os import *"])
def test_a_function_is_held_by_what_its_file_binds(tmp_path: Path, code: str) -> None:
    (tmp_path / "m.py").write_text(code)
    check_function("./m.py:net", tmp_path)
    (tmp_path / "m.py").write_text("def nett(): ...")
    with pytest.raises(UserError, match=r'(?s)E120.*no function "net".*did you mean "nett"'):
        check_function("./m.py:net", tmp_path)
