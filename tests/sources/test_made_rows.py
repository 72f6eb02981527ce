"""Images and recordings that do not fit into memory: the same bits as in memory, and nothing lost to a damaged file."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from mirabelle import Task
from mirabelle.cli import main
from mirabelle.errors import UserError
from mirabelle.run.run import same_run
from mirabelle.sources import task_from
from mirabelle.sources.datasets import images, sounds
from mirabelle.sources.datasets.cache import CACHE
from mirabelle.task.indexed import Indexed
from mirabelle.task.preprocessing import pictures
from mirabelle.task.preprocessing.sound import read_wav
from mirabelle.task.samples import Samples

SPLITS = ("train", "validation", "test")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def photos(folder: Path, count: int = 20, *, deep: bool = False) -> Path:
    """Two classes of pictures of slightly different sizes; with `deep`, most of them have twelve bits."""
    draw = np.random.default_rng(0)
    for name, level in (("bright", 190), ("dark", 60)):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            values = np.clip(draw.normal(level, 20, (14 + k % 2, 12)), 0, 255)
            pixels = (16 * values + 3).astype(np.uint16) if deep and k % 4 else values.astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k:02}.png")
    return folder


def recordings(folder: Path, count: int = 15) -> Path:
    draw = np.random.default_rng(0)
    for name, pitch in (("high", 1500), ("low", 300)):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            times = np.arange(800 + 20 * k) / 4000
            tone = 0.5 * np.sin(2 * np.pi * pitch * times) + 0.02 * draw.normal(size=len(times))
            wavfile.write(folder / name / f"{k:02}.wav", 4000, (32767 * np.clip(tone, -1, 1)).astype(np.int16))
    return folder


def task(folder: Path, **arguments: Any) -> Task:
    return task_from(f"./{folder.name}", arguments, data_folder=None, folder=folder.parent)


def large(folder: Path, **arguments: Any) -> Task:
    """The task, as if nothing fitted into memory."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (images, sounds):
            patched.setattr(module, "IN_MEMORY", 0)
        return task(folder, **arguments)


def assert_same(one: Task, other: Task) -> None:
    """The second task has the samples of the first, to the bit, and reads them when they are needed."""
    assert one.preprocessing == other.preprocessing
    for name in SPLITS:
        here, there = getattr(one, name), getattr(other, name)
        assert type(here) is Samples
        assert isinstance(there, Indexed)
        assert torch.equal(here.inputs, there.inputs)
        assert torch.equal(here.targets, there.targets)


@pytest.mark.parametrize("arguments", [{}, {"cache": False}, {"workers": 0}, {"workers": 3, "layout": "channels-last"}])
def test_deep_images_that_are_read_when_needed_are_those_in_memory(
    arguments: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    folder = photos(tmp_path / "photos", deep=True)
    here, there = task(folder, size=[12, 12], **arguments), large(folder, size=[12, 12], **arguments)
    assert 3000 < getattr(here.preprocessing, "white", 0) < 4096  # learned from the training images
    assert_same(here, there)
    if arguments.get("cache", True):
        (file,) = cache.iterdir()
        assert np.load(file).dtype == np.float32
    assert_same(task(folder, size=[12, 12], white=4000.0), large(folder, size=[12, 12], white=4000.0))


@pytest.mark.parametrize(
    "arguments",
    [{"mels": 8}, {"mels": 8, "seconds": 0.2, "cache": False}, {"features": "waveform"}, {"mels": 8, "pattern": r"(\d)"}],
)
def test_features_that_are_read_when_needed_are_those_in_memory(arguments: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    folder = recordings(tmp_path / "sounds")
    if "pattern" in arguments:
        folder = folder / "low"
    here, there = task(folder, **arguments), large(folder, **arguments)
    assert_same(here, there)
    assert there.notes[: len(here.notes)] == here.notes
    if arguments.get("cache", True):
        (file,) = cache.iterdir()
        assert "from a file of" in there.notes[-1]
        written = file.stat().st_mtime_ns
        assert large(folder, **arguments).fingerprint() == there.fingerprint()
        assert file.stat().st_mtime_ns == written
    else:
        assert there.notes[-1] == "The features are computed whenever they are read (cache = false)."


def test_transcriptions_are_read_when_needed(cache: Path, tmp_path: Path) -> None:
    folder = recordings(tmp_path / "sounds") / "low"
    rows = "".join(f"{path.name},{'ab'[k % 2]}\n" for k, path in enumerate(sorted(folder.iterdir())))
    (folder / "metadata.csv").write_text(f"file_name,text\n{rows}")
    arguments = {"kind": "transcription", "labels": ["", "a", "b"], "features": "waveform"}
    assert_same(task(folder, **arguments), large(folder, **arguments))
    assert len(list(cache.iterdir())) == 1


def test_without_a_cache_nothing_is_written_and_the_note_says_so(cache: Path, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    here, there = task(folder, size=[12, 12], cache=False), large(folder, size=[12, 12], cache=False)
    assert_same(here, there)
    assert not cache.exists()
    assert there.notes[-1] == "The images are decoded whenever they are read (cache = false)."
    assert there.fingerprint() == large(folder, size=[12, 12]).fingerprint()  # how they are read is no part of what they are


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(CACHE, str(tmp_path / "file" / "cache"))
    folder = photos(tmp_path / "photos")
    found = large(folder, size=[12, 12])
    assert_same(task(folder, size=[12, 12]), found)
    assert "cannot be used for decoded images (Not a directory): they are decoded whenever" in found.notes[-1]


def test_mean_and_deviation_that_are_given_are_not_learned_by_decoding_everything(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos(tmp_path / "photos")
    seen: list[Path] = []
    monkeypatch.setattr(images, "pixels", lambda path, **how: seen.append(path) or pictures.pixels(path, **how))
    found = large(folder, size=[12, 12], mean=[0.5], deviation=[0.25], cache=False)
    assert len(set(seen)) <= 3  # the first of each split, whose shape is checked
    monkeypatch.undo()
    monkeypatch.setenv(CACHE, str(cache))
    assert_same(task(folder, size=[12, 12], mean=[0.5], deviation=[0.25]), found)


def damage(folder: Path, kind: str) -> list[Path]:
    """Damage three files: one has no content, one another content, and one ends too early."""
    one, other = sorted(place for place in folder.iterdir() if place.is_dir())
    paths = [one / f"03{kind}", other / f"05{kind}", other / f"07{kind}"]
    paths[0].write_bytes(b"")
    paths[1].write_bytes(b"dear diary" * 10)
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[: len(whole) * 2 // 3])
    return paths


@pytest.mark.parametrize("kind", ["images", "deep images", "recordings"])
def test_damaged_files_are_named_or_left_out(kind: str, cache: Path, tmp_path: Path) -> None:
    """In memory, from a file, and decoded at every read, with the same samples."""
    of_images = kind != "recordings"
    folder = photos(tmp_path / "data", deep=kind == "deep images") if of_images else recordings(tmp_path / "data")
    arguments: dict[str, Any] = {"size": [12, 12]} if of_images else {"mels": 8}
    whole = task(folder, **arguments)
    paths = damage(folder, ".png" if of_images else ".wav")
    for read in (task, large):
        with pytest.raises(UserError, match=r"E131.*03\.(png|wav)(.|\n)*skip_unreadable = true"):
            read(folder, **arguments)
    here = task(folder, **arguments, skip_unreadable=True)
    for more in ({}, {"cache": False}, {"workers": 0}):
        there = large(folder, **arguments, **more, skip_unreadable=True)
        assert_same(here, there)
        told = [note for note in there.notes if "cannot be read" in note]
        assert told == [note for note in here.notes if "cannot be read" in note]
        (note,) = told
        several = "images" if of_images else "recordings"
        total = len(whole.train) + len(whole.validation) + len(whole.test)
        names = ", ".join(map(str, paths))
        assert note == f"3 of {total} {several} cannot be read and are left out (skip_unreadable = true): {names}."
    assert sum(len(getattr(here, name)) for name in SPLITS) == total - 3
    with pytest.raises(UserError, match=r"E131.*03\.(png|wav)"):  # the file of rows that was made meanwhile knows them, too
        large(folder, **arguments)


def test_what_can_be_read_stays_in_its_split(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    known = {"size": [12, 12], "mean": [0.5], "deviation": [0.25]}
    before = task(folder, **known)
    damage(folder, ".png")
    after = task(folder, **known, skip_unreadable=True)
    for name in SPLITS:
        rows = iter(getattr(before, name).inputs)
        assert all(any(torch.equal(one, row) for row in rows) for one in getattr(after, name).inputs)  # in the same order


def test_damaged_files_are_decoded_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photos(tmp_path / "photos")
    damage(folder, ".png")
    seen: Counter[Path] = Counter()
    monkeypatch.setattr(images, "pixels", lambda path, **how: seen.update([path]) or pictures.pixels(path, **how))
    large(folder, size=[12, 12], skip_unreadable=True)
    assert len(seen) == 40
    assert set(seen.values()) == {1}
    seen.clear()
    large(folder, size=[12, 12], skip_unreadable=True)
    assert not seen  # the file says which could not be read
    large(folder, size=[12, 12], skip_unreadable=True, cache=False)
    assert len(seen) == 40
    assert sum(count > 1 for count in seen.values()) <= 3  # the first of each split, whose shape is checked


def test_recordings_that_are_cut_off_are_told(cache: Path, tmp_path: Path) -> None:
    folder = recordings(tmp_path / "sounds")
    cut, piped, larger = (folder / "low" / f"0{k}.wav" for k in (3, 4, 5))
    cut.write_bytes(cut.read_bytes()[:1000])
    data = piped.read_bytes()
    piped.write_bytes(data[:40] + b"\xff" * 4 + data[44:])  # of a program that did not know the length
    wavfile.write(larger, 4000, np.zeros((900, 2), np.float32))
    larger.write_bytes(larger.read_bytes() + b"LISTx")
    for read in (task, large):
        (told,) = [note for note in read(folder, mels=8).notes if "end before the end" in note]
        assert told == (
            "1 of 30 recordings end before the end that their headers tell, "
            f"the first is {cut}; skip_unreadable = true leaves them out."
        )
        left = read(folder, mels=8, skip_unreadable=True)
        assert sum(len(getattr(left, name)) for name in SPLITS) == 29


def test_a_file_that_is_damaged_during_a_run_is_named(cache: Path, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    for skip, helps in ((False, "skip_unreadable = true"), (True, "give an intact")):
        found = large(folder, size=[12, 12], cache=False, skip_unreadable=skip)
        lost = folder / "dark" / "05.png"
        whole = lost.read_bytes()
        lost.write_bytes(whole[:90])
        with pytest.raises(UserError, match=rf"E131.*05\.png cannot be read as an image(.|\n)*{helps}"):
            [getattr(found, name).inputs for name in SPLITS]
        lost.write_bytes(whole)


def test_damaged_recordings_are_read_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = recordings(tmp_path / "sounds")
    damage(folder, ".wav")
    seen: Counter[Path] = Counter()
    monkeypatch.setattr(sounds, "read_wav", lambda path: seen.update([path]) or read_wav(path))
    for kept in (True, False):
        seen.clear()
        large(folder, mels=8, skip_unreadable=True, cache=kept)
        assert len(seen) == 30
        assert sum(count > 1 for count in seen.values()) <= 3  # the first of each split, whose shape is checked
    assert [file.suffix for file in cache.iterdir()] == [".npy"]


def test_a_class_or_a_split_of_which_nothing_can_be_read_is_told(cache: Path, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", count=6)
    for path in (folder / "dark").iterdir():
        path.write_bytes(b"")
    for read in (task, large):
        with pytest.raises(UserError, match=r'E131.*none of the training images of class "dark" can be read'):
            read(folder, size=[12, 12], skip_unreadable=True)
    for path in (folder / "bright").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"E131.*no image can be read"):
        task(folder, skip_unreadable=True)
    sound = recordings(tmp_path / "sounds", count=6)
    for path in sound.rglob("*.wav"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"E131.*no recording can be read"):
        task(sound, skip_unreadable=True)


def test_a_damaged_mask_leaves_out_its_image_alone(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    draw = np.random.default_rng(0)
    for name, high in (("images", 256), ("masks", 3)):
        (folder / name).mkdir(parents=True)
        for k in range(12):
            Image.fromarray(draw.integers(0, high, (10, 10), dtype=np.uint8)).save(folder / name / f"{k:02}.png")
    lost = folder / "masks" / "04.png"
    whole = lost.read_bytes()
    lost.write_bytes(whole[:60])
    with pytest.raises(UserError, match=r"E131.*masks/04\.png(.|\n)*skip_unreadable"):
        task(folder, kind="segmentation")
    here = task(folder, kind="segmentation", skip_unreadable=True)
    assert_same(here, large(folder, kind="segmentation", skip_unreadable=True))
    assert sum(len(getattr(here, name)) for name in SPLITS) == 11
    lost.write_bytes(whole)  # the decoded image itself was never damaged
    assert_same(task(folder, kind="segmentation"), large(folder, kind="segmentation"))
    assert len(list(cache.iterdir())) == 1


def test_two_that_begin_at_once_decode_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photos(tmp_path / "photos")
    seen: list[Path] = []

    def slowly(path: Path, **how: Any) -> Any:
        seen.append(path)
        time.sleep(0.005)
        return pictures.pixels(path, **how)

    monkeypatch.setattr(images, "pixels", slowly)
    monkeypatch.setattr(images, "IN_MEMORY", 0)
    found: list[Task] = []
    both = [threading.Thread(target=lambda: found.append(task(folder, size=[12, 12], workers=0))) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(seen) == 40
    assert found[0].fingerprint() == found[1].fingerprint()
    assert [file.suffix for file in cache.iterdir()] == [".npy"]


def test_a_disk_that_becomes_full_is_told_and_leaves_no_half_file(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos(tmp_path / "photos")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mirabelle.sources.datasets.cache.os.fsync", full)
    with pytest.raises(UserError, match=r"E202.*No space left"):
        large(folder, size=[12, 12])
    assert not list(cache.iterdir())


def test_what_stands_behind_the_rows_is_checked(cache: Path, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    large(folder, size=[12, 12])
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    for behind in (b"[[99999, 3]]", b"{", b"[1]"):
        file.write_bytes(whole + behind)
        with pytest.raises(UserError, match=r"E141(.|\n)*remove it"):
            large(folder, size=[12, 12])


NET = """
import torch
from torch import nn
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
"""
RECIPE = """schema = 1
[model]
from = "./net.py:net"
[task]
data = "./photos"
arguments = { size = [12, 12], cache = CACHE }
[baseline]
train = { epochs = 1, batch_size = 8 }
[[step]]
use = "quantize.Dynamic"
"""


@pytest.fixture
def checked(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What `mirabelle check` says of a recipe with photos that do not fit into memory."""
    photos(tmp_path / "photos")
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(images, "IN_MEMORY", 0)

    def told(*options: str, kept: str) -> str:
        (tmp_path / "recipe.toml").write_text(RECIPE.replace("CACHE", kept))
        assert main.run(["check", "recipe.toml", *options]) == 0
        return capsys.readouterr().out

    return told


def test_check_says_how_data_are_read_and_decodes_only_a_few(checked: Callable[..., str], cache: Path, tmp_path: Path) -> None:
    told = checked(kept="true")
    way = f"read when needed, from a file of 5.8 kB in {cache}, which takes about 1 s to make; "
    assert f"train, validation, test: {way}" in told
    assert "Only a few were looked at" in told
    assert not list(cache.iterdir())
    task(tmp_path / "photos", size=[12, 12])
    assert f"train, validation, test: read when needed, from a file of 5.8 kB in {cache}, which is there" in checked(
        kept="true"
    )


def test_check_says_what_decoding_at_every_read_takes(checked: Callable[..., str], cache: Path) -> None:
    found = json.loads(checked("--json", kept="false"))
    assert {split: one["how"] for split, one in found["reading"].items()} == dict.fromkeys(SPLITS, "source")
    seconds = [found["reading"][split]["seconds"] / found["samples"][split] for split in SPLITS]
    assert seconds[0] > 0
    assert seconds == pytest.approx(seconds[:1] * 3)  # for a sample
    assert any("(cache = false)" in remark for remark in found["remarks"])
    assert not cache.exists()


def test_a_run_goes_on_when_its_data_are_read_in_another_way() -> None:
    def recipe(data: str, **arguments: Any) -> dict[str, Any]:
        return {"task": {"data": data, "arguments": arguments}, "seed": 0}

    for data in ("./photos", "data:photos", "./train-{00..09}.tar"):
        assert same_run(recipe(data, size=[8, 8]), recipe(data, size=[8, 8], cache=False, workers=2))
        assert same_run({"task": {"data": data}, "seed": 0}, recipe(data, cache=False))
        assert not same_run(recipe(data), recipe(data, skip_unreadable=True))
    assert not same_run(recipe("./file.py:task"), recipe("./file.py:task", workers=2))  # an argument of the user's function
