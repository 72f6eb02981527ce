"""Images with masks as data of a semantic segmentation, and its metric."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from mirabelle.errors import UserError
from mirabelle.sources import task_from
from mirabelle.task.metric import Metric
from mirabelle.task.outputs import Form, OutputKind
from mirabelle.task.task import Task


def scenes(folder: Path, count: int = 12, size: tuple[int, int] = (8, 12)) -> Path:
    random = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for k in range(count):
        mask = random.choice(np.array([0, 1, 2, 255], np.uint8), size)
        PIL.Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(folder / "images" / f"{k}.png")
        PIL.Image.fromarray(mask).save(folder / "masks" / f"{k}.png")
    return folder


def read(folder: Path, **arguments: object) -> Task:
    return task_from(f"./{folder.name}", {"kind": "segmentation", **arguments}, data_folder=None, folder=folder.parent)


def test_the_value_of_a_pixel_is_its_class_and_255_is_none(tmp_path: Path) -> None:
    task = read(scenes(tmp_path / "scenes"))
    assert task.labels == ("0", "1", "2")
    assert task.metric.name == "mean_iou"
    assert task.outputs.form is Form.CLASSES
    assert not task.notes
    batch = task.train.first(9)
    assert batch.inputs.shape[1:] == (3, 8, 12)
    assert set(batch.targets.unique().tolist()) == {-100, 0, 1, 2}
    image, mask = (PIL.Image.open(tmp_path / "scenes" / part / "0.png") for part in ("images", "masks"))
    due = task.preprocessing.scaled(np.array(image))
    every = [data.first(len(data)) for data in (task.train, task.validation, task.test)]
    rows = [(k, j) for k, part in enumerate(every) for j, x in enumerate(part.inputs) if np.array_equal(x.numpy(), due)]
    assert len(rows) == 1
    own = every[rows[0][0]].targets[rows[0][1]].numpy()
    np.testing.assert_array_equal(own, np.where(np.array(mask) == 255, -100, np.array(mask).astype(int)))


def test_masks_are_resized_without_new_classes_and_reduced(tmp_path: Path) -> None:
    task = read(scenes(tmp_path / "scenes"), size=[4, 4], resize=[5], reduce_labels=True, labels=["a", "b"])
    targets = task.train.first(9).targets
    assert targets.shape[1:] == (4, 4)
    assert set(targets.unique().tolist()) == {-100, 0, 1}


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    folder = scenes(tmp_path / "scenes")
    with pytest.raises(UserError, match="has class 2, and `labels` has 2 names") as caught:
        read(folder, labels=["a", "b"])
    assert caught.value.code == "E131"
    PIL.Image.new("L", (3, 3)).save(folder / "masks" / "3.png")
    with pytest.raises(UserError, match="has 3×3 pixels, its image 8×12"):
        read(folder)
    PIL.Image.new("RGB", (12, 8)).save(folder / "masks" / "3.png")
    with pytest.raises(UserError, match="it has colours; a mask has one number for each pixel"):
        read(folder)
    (folder / "masks" / "3.png").unlink()
    with pytest.raises(UserError, match=r"1 of 12 images have no mask, the first is .*3\.png"):
        read(folder)
    with pytest.raises(UserError, match="does not contain the folders images and masks"):
        read(folder / "images")


@pytest.mark.parametrize("classes", [2, 3, 40])
def test_mean_iou_is_the_mean_over_the_classes_that_occur(classes: int) -> None:
    random = torch.Generator().manual_seed(classes)
    outputs, targets = torch.randn(5, classes, 6, 6, generator=random), torch.randint(0, 3, (5, 6, 6), generator=random)
    targets = targets.clamp(max=classes - 1).masked_fill(torch.rand(5, 6, 6, generator=random) < 0.1, -100)
    found, counted = outputs.argmax(1), targets != -100
    each = []
    for k in range(classes):
        both, either = ((found == k) & (targets == k)).sum(), (((found == k) | (targets == k)) & counted).sum()
        each += [float(both / either)] if either else []
    metric = Metric.of("mean_iou")
    value = metric.value(metric.of_samples(outputs, targets, OutputKind(Form.CLASSES, 1, "Softmax")))
    assert value == pytest.approx(sum(each) / len(each), abs=1e-6)
