"""Images moved and mirrored: what is drawn, on what it depends, and where it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from mirabelle import Augmentation, Task
from mirabelle.errors import UserError
from mirabelle.recipe.file import read_recipe
from mirabelle.task.preprocessing import Image
from mirabelle.task.samples import Samples

RECIPE = """
schema = 1
[model]
from = "mirabelle.sources.zoo:digits_cnn"
[task]
data = "digits"
augment = { crop = 1 }
[[step]]
use = "quantize.Static"
"""


def pictures(count: int = 600) -> Samples:
    """No pixel is zero, and no two are alike."""
    return Samples(torch.arange(1.0, count * 2 * 5 * 6 + 1).reshape(count, 2, 5, 6), torch.arange(count) % 3)


def windows(image: Tensor, crop: int) -> dict[tuple[int, int, bool], Tensor]:
    """Every image that may come of one: cut out of a padded one, mirrored or not."""
    padded = F.pad(image, (crop, crop, crop, crop))
    height, width = image.shape[1:]
    found = {}
    for top in range(2 * crop + 1):
        for left in range(2 * crop + 1):
            window = padded[:, top : top + height, left : left + width]
            found |= {(top, left, False): window, (top, left, True): window.flip(-1)}
    return found


def test_every_shift_and_both_sides_come_equally_often() -> None:
    samples, crop = pictures(), 1
    batch = Augmentation(crop=crop, flip=True)(samples.at(torch.arange(600)), 0)
    assert torch.equal(batch.targets, samples.targets)
    counts: dict[tuple[int, int, bool], int] = {}
    for before, after in zip(samples.inputs, batch.inputs, strict=True):
        made = [key for key, window in windows(before, crop).items() if torch.equal(window, after)]
        assert len(made) == 1
        counts[made[0]] = counts.get(made[0], 0) + 1
    assert len(counts) == 18
    assert sum((count - 600 / 18) ** 2 / (600 / 18) for count in counts.values()) < 33.4  # chi², 17 degrees, 1 %


def test_a_draw_depends_on_seed_epoch_and_sample_alone() -> None:
    samples, augment = pictures(), Augmentation(crop=2, flip=True)
    whole = augment(samples.at(torch.arange(600)), 3)
    some = torch.tensor([17, 3, 599])
    assert torch.equal(augment(samples.at(some), 3).inputs, whole.inputs[some])
    assert not torch.equal(augment(samples.at(some), 4).inputs, whole.inputs[some])
    assert not torch.equal(Augmentation(crop=2, flip=True, seed=1)(samples.at(some), 3).inputs, whole.inputs[some])


def test_the_view_tells_the_draw() -> None:
    first = pictures().first(2)
    views = [Augmentation(flip=True, seed=seed)(first, epoch).view for seed in (0, 1) for epoch in (0, 1)]
    assert len({0, *views}) == 5


def test_the_given_images_stay() -> None:
    samples = pictures()
    before = samples.inputs.clone()
    Augmentation(crop=2, flip=True)(next(samples.batches(600)), 0)
    assert torch.equal(samples.inputs, before)


def test_channels_may_stand_last() -> None:
    first = pictures()
    last = Samples(first.inputs.movedim(1, -1).contiguous(), first.targets)
    moved = Augmentation(crop=2, flip=True, layout="channels-last")(last.first(600), 1)
    assert torch.equal(moved.inputs.movedim(-1, 1), Augmentation(crop=2, flip=True)(first.first(600), 1).inputs)
    with pytest.raises(
        UserError, match=r"(?s)E131.*inputs \(samples, height, width, channels\) with height and width above crop = 5"
    ):
        Augmentation(crop=5, layout="channels-last").check(last.inputs)
    images = Image(size=(5, 6), mode="RGB", layout="channels-last")
    data = (torch.zeros(20, 5, 6, 3), torch.arange(20) % 2)
    task = Task(train=data, test=data, preprocessing=images, augment=Augmentation(flip=True))
    assert task.augment == Augmentation(flip=True, layout="channels-last"), "where they stand is told by the preprocessing"


def test_only_images_in_memory_are_augmented(blobs: Task, images: Task) -> None:
    with pytest.raises(UserError, match=r"(?s)E131.*inputs \(samples, channels, height, width\).*got torch.float32 \(400, 8\)"):
        blobs.with_augment(Augmentation(flip=True))
    with pytest.raises(UserError, match=r"(?s)E131.*height and width above crop = 8"):
        images.with_augment(Augmentation(crop=8))
    loader = DataLoader(TensorDataset(images.train.inputs, images.train.targets), shuffle=True)
    with pytest.raises(UserError, match=r"(?s)E131.*loader that shuffles"):
        Task(train=loader, validation=images.validation, test=images.test, augment=Augmentation(flip=True))
    with pytest.raises(UserError, match=r"(?s)E110.*needs crop or flip"):
        Augmentation()


def test_a_recipe_asks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    file = read_recipe(path)
    assert file.build_task(None).augment == Augmentation(crop=1)
    assert file.source()["task"]["augment"] == {"crop": 1, "flip": False, "seed": 0}
    path.write_text(RECIPE.replace("crop = 1", "crop = 8"))
    with pytest.raises(UserError, match="E131") as caught:
        read_recipe(path).build_task(None)
    assert caught.value.place is not None
    assert caught.value.place.line == 7
    path.write_text(RECIPE.replace("crop = 1", "crop = -1, flipp = true"))
    with pytest.raises(UserError, match=r"(?s)flipp.*did you mean"):
        read_recipe(path)
