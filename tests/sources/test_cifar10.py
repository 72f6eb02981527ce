from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mirabelle.errors import UserError
from mirabelle.sources import task_from
from mirabelle.sources.datasets import cifar10 as source
from mirabelle.task.preprocessing import from_json, to_json

NAMES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of 20 records, 10 of 100 held out."""
    monkeypatch.setattr(source, "_RECORDS", 20)
    monkeypatch.setattr(source, "_HELD_OUT", 10)


def write(folder: Path, *, count: int = 20, top: int = 10) -> None:
    """Red is 255, green the number of the file, blue 0 but for its last pixel, the number of the record."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(NAMES):
        records = np.zeros((count, 3073), np.uint8)
        records[:, 0] = np.arange(count) % top
        records[:, 1:1025] = 255
        records[:, 1025:2049] = number
        records[:, -1] = np.arange(count)
        (folder / name).write_bytes(records.tobytes())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("place", ["", "cifar10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"])
def test_cifar10_is_read_plane_by_plane_and_scaled(tmp_path: Path, place: str) -> None:
    write(tmp_path / place)
    task = task_from("cifar10", {}, data_folder=tmp_path, folder=tmp_path)
    assert (len(task.train), len(task.validation), len(task.test)) == (90, 10, 20)
    assert task.labels[3] == "cat"
    assert torch.equal(task.test.targets, torch.arange(20) % 10)
    pixels = task.test.inputs[13] * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    pixels = (pixels + torch.tensor([0.485, 0.456, 0.406])[:, None, None]) * 255
    torch.testing.assert_close(pixels[0], torch.full((32, 32), 255.0))
    torch.testing.assert_close(pixels[1], torch.full((32, 32), 5.0))
    assert pixels[2].flatten()[-1].item() == pytest.approx(13, abs=1e-3)
    assert pixels[2].flatten()[:-1].abs().max() < 1e-3


@pytest.mark.usefixtures("small")
def test_images_come_in_as_a_model_wants_them(tmp_path: Path) -> None:
    """Such as a Keras model that was trained on pixels from 0 to 255."""
    write(tmp_path)
    given = {"mean": [0.0] * 3, "deviation": [0.00392157] * 3, "layout": "channels-last"}
    task = task_from("cifar10", given, data_folder=tmp_path, folder=tmp_path)
    assert task.test.inputs.shape == (20, 32, 32, 3)
    due = torch.tensor([255.0, 5.0, 0.0]).expand(32, 32, 3)
    torch.testing.assert_close(task.test.inputs[0], due, atol=1e-3, rtol=0)
    assert task.preprocessing is not None
    assert '"layout":"channels-last"' in to_json(task.preprocessing)
    assert from_json(to_json(task.preprocessing)) == task.preprocessing
    with pytest.raises(UserError, match=r'E102.*"layuot" for data "cifar10"'):
        task_from("cifar10", {"layuot": "channels-last"}, data_folder=tmp_path, folder=tmp_path)
    with pytest.raises(UserError, match=r"E110.*3 channels"):
        task_from("cifar10", {"mean": [0.0]}, data_folder=tmp_path, folder=tmp_path)


@pytest.mark.usefixtures("small")
def test_what_validates_is_not_trained_on_and_always_the_same(tmp_path: Path) -> None:
    write(tmp_path)
    one, two = source.cifar10(tmp_path), source.cifar10(tmp_path)
    assert one.fingerprint() == two.fingerprint()
    both = torch.cat([one.train.inputs, one.validation.inputs])
    assert len(both.flatten(1).unique(dim=0)) == 100


@pytest.mark.usefixtures("small")
def test_files_of_cifar10_that_are_missing_or_damaged_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIRABELLE_DATA", raising=False)
    with pytest.raises(UserError, match="--data-dir FOLDER, or set MIRABELLE_DATA"):
        task_from("cifar10", {}, data_folder=None, folder=tmp_path)
    with pytest.raises(UserError, match=r"(?s)E130.*no data_batch_1.bin"):
        source.cifar10(tmp_path)
    write(tmp_path, top=11)
    with pytest.raises(UserError, match=r"(?s)E131.*classes from 0 to 9; got 10"):
        source.cifar10(tmp_path)
    write(tmp_path, count=19)
    with pytest.raises(UserError, match=r"(?s)E131.*must have 20 records"):
        source.cifar10(tmp_path)
    write(tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(UserError, match=r"(?s)E130.*no test_batch.bin"):
        source.cifar10(tmp_path)


@pytest.mark.slow
def test_the_real_cifar10_is_the_real_cifar10() -> None:
    place = os.environ.get("MIRABELLE_DATA")
    if not place or not any((Path(place) / name / "test_batch.bin").is_file() for name in source._PLACES):
        pytest.skip("MIRABELLE_DATA does not name a folder with CIFAR-10 in it")
    task = source.cifar10(Path(place))
    assert torch.bincount(task.test.targets).tolist() == [1000] * 10
    assert torch.bincount(torch.cat([task.train.targets, task.validation.targets])).tolist() == [5000] * 10
