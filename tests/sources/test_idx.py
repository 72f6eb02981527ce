"""IDX files of any name and size, compressed or not, as data."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from mirabelle import Task
from mirabelle.errors import UserError
from mirabelle.sources import task_from
from mirabelle.sources.datasets.idx import read_idx

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def write(path: Path, array: np.ndarray) -> None:
    header = bytes((0, 0, CODES[array.dtype.name], array.ndim)) + np.array(array.shape, ">u4").tobytes()
    data = header + array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def task(path: Path, **arguments: object) -> Task:
    return task_from(f"./{path.name}", arguments, data_folder=None, folder=path.parent)


@pytest.mark.parametrize("name", list(CODES))
def test_every_type_is_read_with_its_values(tmp_path: Path, name: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(name)
    for path in (tmp_path / "a", tmp_path / "b.gz"):
        write(path, array)
        found = read_idx(path)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(("shape", "inputs"), [((6, 5), (1, 6, 5)), ((6, 5, 3), (3, 6, 5))])
def test_a_folder_of_idx_files_is_data(tmp_path: Path, shape: tuple[int, ...], inputs: tuple[int, ...]) -> None:
    folder = tmp_path / "plums"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (40, *shape), np.uint8)
    labels = (np.arange(40) % 3).astype(np.uint8)
    write(folder / "pictures.gz", images)
    write(folder / "what they show", labels)
    found = task(folder)
    assert (len(found.train), len(found.validation), len(found.test)) == (28, 3, 9)
    assert found.train.inputs.shape[1:] == inputs
    assert found.labels == ("0", "1", "2")
    write(folder / "pictures-test", images[:12])
    write(folder / "t10k.labels.gz", labels[:12])
    found = task(folder, mean=[0.0] * inputs[0], deviation=[1.0] * inputs[0])
    assert len(found.test) == 12
    given = torch.from_numpy(images[0] / np.float32(255)).reshape(*shape[:2], -1).permute(2, 0, 1)
    torch.testing.assert_close(found.test.inputs[0], given)


def test_files_that_do_not_belong_together_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "plums"
    folder.mkdir()
    write(folder / "x", np.zeros((5, 2, 2), np.uint8))
    with pytest.raises(
        UserError, match=r"E131.*train data need one IDX file of inputs and one of labels \(N,\); found x \(5, 2, 2\)"
    ):
        task(folder)
    write(folder / "y", np.zeros(4, np.uint8))
    with pytest.raises(UserError, match=r"E131.*x has 5 samples, y has 4 labels"):
        task(folder)
    (folder / "y").write_bytes((folder / "y").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"E131.*y has 11 bytes; an IDX file of shape \(4,\) and type uint8 has 12"):
        task(folder)
    for path in tuple(folder.iterdir()):
        path.rename(folder / f"test-{path.name}")
    (folder / "test-y").unlink()
    write(folder / "test-y", np.zeros(5, np.uint8))
    with pytest.raises(UserError, match=r"E131.*no training data among its IDX files: test-x, test-y"):
        task(folder)
