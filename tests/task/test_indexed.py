"""Samples that are read when they are needed give what samples in memory give, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mirabelle import Run, Task, Training, compress, prune, quantize
from mirabelle.errors import UserError
from mirabelle.model.state import copied, tensors_of_module
from mirabelle.sources import task_from
from mirabelle.sources.datasets import cache as cache_of_data
from mirabelle.sources.datasets import images
from mirabelle.sources.datasets.cache import CACHE
from mirabelle.task.indexed import Indexed, ahead
from mirabelle.task.preprocessing import pictures
from mirabelle.task.reading_cost import Reading
from mirabelle.task.samples import Samples
from mirabelle.training import evaluate, fit


class Reader:
    """Reads rows, and counts them."""

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.seen = rows, list[int]()

    def __call__(self, index: Tensor) -> Tensor:
        self.seen += index.tolist()
        return self.rows[index]


def both(count: int = 200) -> tuple[Samples, Indexed, Reader]:
    draw = torch.Generator().manual_seed(0)
    rows, targets = torch.randn(count, 8, generator=draw), torch.arange(count) % 3
    rows[torch.arange(count), targets] += 2
    reader = Reader(rows)
    return Samples(rows, targets), Indexed(reader, targets, "rows"), reader


def same(one: Samples, other: Samples) -> bool:
    return len(one) == len(other) and torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)


def test_everything_that_samples_do() -> None:
    here, there, reader = both()
    index = torch.tensor([5, 1, 1])
    assert torch.equal(here.at(index).inputs, there.at(index).inputs)
    assert same(here.drawn(10, 3), there.drawn(10, 3))
    assert type(there.drawn(10, 3)) is Samples
    for one, other in zip(here.split(0.3, 4), there.split(0.3, 4), strict=True):
        assert same(one, other)
        assert isinstance(other, Indexed)
    mine, others = list(here.shuffled(32, 7)), list(there.shuffled(32, 7))
    assert all(torch.equal(one.inputs, other.inputs) for one, other in zip(mine, others, strict=True))
    assert torch.equal(torch.cat([batch.inputs for batch in there.batches(33)]), here.inputs)
    assert torch.equal(there.with_targets(lambda targets: targets + 1).targets, here.targets + 1)
    assert not there.against(torch.zeros(200, 3)).labelled
    assert there.nbytes == here.nbytes
    assert there.on(torch.device("cpu")) is there  # it is not read into the memory of a device
    reader.seen.clear()
    there.shuffled(32, 7)[2]
    assert len(reader.seen) == 32  # nothing of the batches before


def test_samples_without_labels_are_added_without_reading_the_others() -> None:
    samples, indexed, reader = both()
    more = torch.randn(7, 8, generator=torch.Generator().manual_seed(1))
    tasks = [Task(train=one, validation=samples, test=samples).with_unlabelled(more) for one in (samples, indexed)]
    assert isinstance(tasks[1].train, Indexed)
    assert len(reader.seen) < 20
    index = torch.tensor([205, 3, 201, 199, 200])
    for chosen in (index, index[:1], torch.tensor([5, 1])):
        expected, found = (task.train.at(chosen) for task in tasks)  # type: ignore[union-attr]
        assert torch.equal(found.inputs, expected.inputs)
        assert torch.equal(found.targets, expected.targets)
    assert tasks[1].train.digest() != indexed.digest()


def test_the_identity_is_that_of_what_is_read() -> None:
    _, there, _ = both()
    again = both()[1]
    assert there.digest() == again.digest()
    parts = there.split(0.3, 4)
    assert len({there.digest(), *(part.digest() for part in parts), parts[0].chosen(torch.arange(5)).digest()}) == 4
    assert there.with_targets(lambda targets: targets + 1).digest() != there.digest()
    assert Indexed(lambda index: index, there.targets, "others").digest() != there.digest()
    unlabelled = Indexed(lambda index: index.float(), None, "rows", count=200)
    assert not unlabelled.labelled
    assert unlabelled.against(torch.zeros(200, 3)).digest() == unlabelled.digest()


def test_values_that_are_not_finite_are_told_with_the_number_of_the_sample() -> None:
    rows = torch.zeros(10, 2)
    rows[7, 1] = torch.nan
    data = Indexed(lambda index: rows[index], torch.zeros(10, dtype=torch.long), "rows")
    assert len(data.at(torch.arange(7))) == 7
    with pytest.raises(UserError, match=r"E131.*inputs contain NaN.*first in sample 7"):
        data.at(torch.tensor([2, 7, 1]))
    with pytest.raises(UserError, match=r"E131.*no samples"):
        Indexed(lambda index: index, torch.zeros(0), "none")


def test_how_samples_are_read_is_told_and_timed_unless_it_is_known() -> None:
    here, there, reader = both()
    assert here.reading() == Reading("memory", here.nbytes)
    reader.seen.clear()
    found = there.reading()
    assert (found.how, found.nbytes) == ("source", 0)
    assert found.seconds > 0
    assert len(reader.seen) == 16  # a few, and not all of them
    known = Indexed(reader, there.targets, "rows", cost=lambda count: Reading("source", 0, seconds=count))
    parts = (known, known.chosen(torch.arange(50)), known.with_targets(lambda targets: targets), known.split(0.25, 0)[1])
    assert [part.reading().seconds for part in parts] == [200, 50, 200, 50]


def test_batches_are_read_ahead_and_what_fails_is_told() -> None:
    here, _, _ = both()
    shuffled = here.shuffled(32, 1)
    found = list(ahead(shuffled.__getitem__, range(2, 6)))
    assert [torch.equal(batch.inputs, shuffled[k].inputs) for k, batch in zip(range(2, 6), found, strict=True)] == [True] * 4
    assert list(ahead(shuffled.__getitem__, range(0))) == []

    def fails(place: int) -> Any:
        if place == 3:
            raise UserError("E131", "no sample", "")
        return shuffled[place]

    coming = ahead(fails, range(6))
    assert [len(next(coming)) for _ in range(3)] == [32, 32, 32]
    with pytest.raises(UserError, match="no sample"):
        next(coming)


def test_a_run_gives_the_same_bits_as_with_data_in_memory(tmp_path: Path) -> None:
    """With a teacher that is cached, calibration, evidence of scores, and a training that is killed in an epoch."""
    here, there, _ = both()
    held, unread, _ = both(60)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    training = Training(epochs=2, batch_size=32, precision="float32")
    steps = [prune.Channels(sparsity=0.3, recover="least-squares", samples=50, train=training), quantize.Static(samples=50)]
    tasks = [Task(train=here, validation=held, test=held), Task(train=there, validation=unread, test=unread)]
    found = [compress(model, task, steps, out=tmp_path / str(k)) for k, task in enumerate(tasks)]
    one, other = (tensors_of_module(result.model) for result in found)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert (tmp_path / "0" / "model.mira").read_bytes() == (tmp_path / "1" / "model.mira").read_bytes()
    assert (evaluate(model, here, tasks[0]) == evaluate(model, there, tasks[1])).all()

    def stop(event: Any) -> None:
        if event["event"] == "progress" and event["done"] >= 8:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("mirabelle.training.checkpoint.Checkpoint.due", property(lambda _: True))
        with pytest.raises(KeyboardInterrupt):
            fit(copied(model), tasks[1], training, Run(tmp_path / "killed", seed=1, callbacks=[stop]))
        again = fit(copied(model), tasks[1], training, Run(tmp_path / "killed", seed=1))
    whole = fit(copied(model), tasks[0], training, Run(tmp_path / "whole", seed=1))
    assert all(torch.equal(*pair) for pair in zip(again.parameters(), whole.parameters(), strict=True))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for name, level in (("dark", 60), ("bright", 190)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(20):
            pixels = np.clip(draw.normal(level, 20, (14 + k % 2, 12, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{k}.png")
    return tmp_path / "photos"


def tasks_of(photos: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Task, Task]:
    arguments = {"size": [12, 12]}
    here = task_from("./photos", arguments, data_folder=None, folder=photos.parent)
    monkeypatch.setattr(images, "IN_MEMORY", 0)
    return here, task_from("./photos", arguments, data_folder=None, folder=photos.parent)


def test_large_folders_of_images_are_decoded_once_and_read_when_needed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    here, there = tasks_of(photos, monkeypatch)
    assert here.preprocessing == there.preprocessing
    assert there.notes[:-1] == here.notes
    assert there.notes[-1].startswith("The images are read when they are needed, from a file of 17.3 kB in the cache ")
    for name in ("train", "validation", "test"):
        assert isinstance(getattr(there, name), Indexed)
        assert same(getattr(here, name), getattr(there, name))
    (file,) = (tmp_path / "cache").iterdir()
    assert np.load(file).shape == (40, 12, 12, 3)
    written = file.stat().st_mtime_ns
    again = task_from("./photos", {"size": [12, 12]}, data_folder=None, folder=photos.parent)
    assert file.stat().st_mtime_ns == written
    assert again.fingerprint() == there.fingerprint()
    other = photos / "dark" / "0.png"
    Image.fromarray(np.full((14, 12, 3), 9, np.uint8)).save(other)
    changed = task_from("./photos", {"size": [12, 12]}, data_folder=None, folder=photos.parent)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert changed.fingerprint() != there.fingerprint()
    assert sum(len(part) for part in (changed.train, changed.validation, changed.test)) == 40


def test_without_space_images_are_decoded_when_they_are_read(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr("mirabelle.sources.datasets.decoded.SPARE", 1e15)
    here, there = tasks_of(photos, monkeypatch)
    assert same(here.train, there.train)  # type: ignore[arg-type]
    assert not list((tmp_path / "cache").iterdir())
    (note,) = set(there.notes) - set(here.notes)
    assert "are not free in" in note
    assert CACHE in note


def test_a_corrupt_image_is_named_and_leaves_no_half_file(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(images, "IN_MEMORY", 0)

    def pixels(path: Path, **how: Any) -> Any:
        if path.name == "7.png" and path.parent.name == "bright":  # damaged behind its header
            path = tmp_path / "7.png"
            path.write_bytes(b"")
        return pictures.pixels(path, **how)

    monkeypatch.setattr(images, "pixels", pixels)
    with pytest.raises(UserError, match=r"E131(.|\n)*7\.png"):
        task_from("./photos", {"size": [12, 12]}, data_folder=None, folder=photos.parent)
    assert not list((tmp_path / "cache").iterdir())


def test_a_decoded_file_that_ends_too_early_is_told(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    _, there = tasks_of(photos, monkeypatch)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    batches = [part.batches(50) for part in (there.train, there.validation, there.test)]
    with pytest.raises(UserError, match=r"E141.*ends too early\n.*remove it"):
        [list(each) for each in batches]


def test_what_a_killed_process_left_is_removed(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    tasks_of(photos, monkeypatch)
    (file,) = (tmp_path / "cache").iterdir()
    file.unlink()
    file.with_name(f"{file.name}.4194303.0.{cache_of_data._here()}.writing").write_bytes(b"half")
    task_from("./photos", {"size": [12, 12]}, data_folder=None, folder=photos.parent)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [file.name]
