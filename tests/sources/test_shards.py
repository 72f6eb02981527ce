"""Images in tar files: the samples of a folder of images, and nothing that a tar says is trusted."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mirabelle import Run, Task, Training
from mirabelle.errors import UserError
from mirabelle.model.state import copied
from mirabelle.sources import task_from
from mirabelle.sources.checks import check_data
from mirabelle.sources.datasets import images, shard_index
from mirabelle.sources.datasets.cache import CACHE
from mirabelle.sources.datasets.image_settings import ImageFolder, TarShards
from mirabelle.sources.datasets.places import Shard
from mirabelle.sources.datasets.settings import settings_from
from mirabelle.sources.datasets.tar_members import members_of
from mirabelle.task.indexed import Indexed
from mirabelle.task.samples import Samples
from mirabelle.training import fit
from shards import png, samples, write_shards, write_tar

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def task(path: Path, **arguments: Any) -> Task:
    return task_from(f"./{path.name}", arguments, data_folder=None, folder=path.parent)


def large(path: Path, **arguments: Any) -> Task:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(images, "IN_MEMORY", 0)
        return task(path, **arguments)


def assert_same(one: Task, other: Task, kind: type[Samples] = Indexed) -> None:
    assert one.preprocessing == other.preprocessing
    assert one.labels == other.labels
    for name in SPLITS:
        here, there = getattr(one, name), getattr(other, name)
        assert type(there) is kind
        assert torch.equal(here.inputs, there.inputs)
        assert torch.equal(here.targets, there.targets)


def test_shards_give_the_samples_of_a_folder_of_images(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", label=("dark", "lit"))
    for name, data in (pair for k in (0, 20) for pair in samples(k, 20)):
        if name.endswith(".png"):
            place = tmp_path / "photos" / ("lit" if int(name[:4]) % 2 else "dark") / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
    found, folder = task(shards), task(tmp_path / "photos")
    assert found.labels == folder.labels == ("dark", "lit")
    assert found.name == "shards"
    assert found.notes == ()
    total = [torch.cat([getattr(one, name).inputs for name in SPLITS]) for one in (found, folder)]
    pixels = [sorted((255 * one).round().flatten(1).sum(1).tolist()) for one in total]
    assert [len(one) for one in pixels] == [40, 40]
    assert pixels[0] == pytest.approx(pixels[1], rel=1e-3)
    assert torch.bincount(found.test.targets).tolist() == [4, 4]  # every class is in every split


@pytest.mark.parametrize("arguments", [{}, {"cache": False}, {"workers": 0, "layout": "channels-last"}])
def test_shards_that_are_read_when_needed_are_those_in_memory(arguments: dict[str, Any], tmp_path: Path, cache: Path) -> None:
    shards = write_shards(tmp_path / "shards")
    write_tar(shards / "val-0.tar", samples(100, 6))
    here, there = task(shards, **arguments), large(shards, **arguments)
    assert (len(here.train), len(here.validation), len(here.test)) == (32, 6, 8)
    assert_same(here, there)
    assert there.fingerprint() == large(shards, **arguments).fingerprint()
    suffixes = sorted(file.suffix for file in cache.iterdir()) if cache.exists() else []
    assert suffixes == ([] if "cache" in arguments else [".json"] * 3 + [".npy"] * 2)
    assert list((tmp_path).rglob("*.png")) == []  # nothing is extracted


def test_names_of_shards(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", count=3)
    both = task(folder / "train-{000000..000001}.tar")
    assert_same(both, task(folder / "train-00000{0,1}.tar"), Samples)
    assert_same(both, task(folder / "train-00000[01].tar"), Samples)
    assert sum(len(getattr(both, name)) for name in SPLITS) == 40
    assert both.name == "shards"
    apart = task(folder / "train-000000.tar", validation="train-000001.tar", test="train-00000{2..2}.tar")
    assert [len(getattr(apart, name)) for name in SPLITS] == [20, 20, 20]
    inside = task(folder, validation="train-000001.tar", test="train-000002.tar")  # which then are not trained on
    assert_same(apart, inside, Samples)
    with pytest.raises(UserError, match=r"E131.*all shards at .* are for validation or test"):
        task(folder / "train-000000.tar", test="*.tar")
    for part in ("train", "validation"):
        write_tar(tmp_path / "nested" / part / "0.tar", samples(0, 10))
    assert [len(getattr(task(tmp_path / "nested"), name)) for name in SPLITS] == [8, 10, 2]
    for name in ("./shards", "shards/train-{000000..000001}.tar", "train-{0..1}.tar"):
        assert isinstance(settings_from(name, {}, tmp_path), TarShards)
    check_data("./shards/train-{000000..000001}.tar", tmp_path)
    alone = write_tar(tmp_path / "{odd}" / "{1}.tar", samples(0, 10))
    assert len(task(alone).train) == 6  # braces without a range or alternatives mean themselves
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "a" / "0.png").write_bytes(png(50, 0))
    write_tar(tmp_path / "photos" / "as-downloaded.tar", samples(0, 2))
    assert isinstance(settings_from("./photos", {}, tmp_path), ImageFolder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train-{000000..000009}.tar", r"E130.*there is no shard .*train-000002\.tar"),
        ("train-{9..1}.tar", r"E110.*\{9\.\.1\} is no range"),
        ("train-{0..999999}{0..9}.tar", r"E110.*more than 1,000,000 shards"),
        ("other-*.tar", r"E130.*no shard matches"),
        ("train.tar", r"E130.*there is no shard"),
    ],
)
def test_names_that_refer_to_nothing(name: str, message: str, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards")
    with pytest.raises(UserError, match=message):
        task(folder / name)
    with pytest.raises(UserError, match=message):
        check_data(f"./{name}", folder)


def test_names_of_splits_that_do_not_fit(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", count=1)
    other = write_tar(folder / "more.tar", samples(0, 4))
    with pytest.raises(UserError, match=r"E131.*more\.tar does not say to which split"):
        task(folder)
    other.rename(folder / "train-val.tar")
    with pytest.raises(UserError, match=r"E131.*words of two splits, train and validation"):
        task(folder)
    for path in folder.iterdir():
        path.rename(folder / f"test-{path.name[-5]}.tar")
    with pytest.raises(UserError, match=r"E131.*no shard in .* is for training"):
        task(folder)


def test_classes_from_numbers_names_and_fields(tmp_path: Path) -> None:
    numbers = write_shards(tmp_path / "numbers", count=1)
    assert task(numbers).labels == ("0", "1")
    assert task(numbers, labels=["dark", "lit", "none"]).labels == ("dark", "lit", "none")
    of_fields = write_shards(tmp_path / "fields", count=1, kind=(1, 0))
    found, other = task(of_fields, label="kind").train, task(numbers).train
    assert isinstance(found, Samples)
    assert found.inputs[found.targets == 1].max() < found.inputs[found.targets == 0].min()  # the dark ones are class 1
    assert other.inputs[other.targets == 1].min() > other.inputs[other.targets == 0].max()
    unlabelled = task(numbers, kind="unlabelled")
    assert not unlabelled.labelled
    names = [(name, data.replace(b"0", b"cat").replace(b"1", b"dog") if name.endswith("cls") else data)
             for name, data in samples(0, 20)]  # fmt: skip
    assert task(write_tar(tmp_path / "names.tar", names)).labels == ("cat", "dog")
    two = [*samples(0, 10), *((f"{k:04}.seg.png", png(9, k)) for k in range(10))]
    assert sum(len(getattr(task(write_tar(tmp_path / "seg.tar", two)), name)) for name in SPLITS) == 10


WITHOUT = [("0.png", png(60, 0)), ("1.png", png(60, 0)), ("1.cls", b"1")]


@pytest.mark.parametrize(
    ("members", "arguments", "message"),
    [
        (WITHOUT, {}, r"E131.*the sample of 0\.png in .* has no class: there is no member \.cls(.|\n)*unlabelled"),
        (
            samples(0, 9, species=("a", "b")),
            {},
            r"E131.*0000\.json .* no class in label or cls or class: it has width, species",
        ),
        ([*samples(0, 8), ("8.png", b"x"), ("8.cls", b"")], {}, r"E131.*8\.cls .* has no class, but ''"),
        ([*samples(0, 8), ("8.png", b"x"), ("8.cls", b"9" * 9)], {}, r"E131.*the class 999999999; at most 1,000,000"),
        (
            [*samples(0, 8), ("8.png", png(9, 9)), ("8.cls", b"cat")],
            {},
            r'E131.*has the number of a class, 0, .* a name, "cat"',
        ),
        ([*samples(0, 8), ("8.json", b"[" * 99999), ("8.png", png(9, 9))], {}, r"E131.*8\.json .* is not valid JSON"),
        ([*samples(0, 8), ("8.cls", b"1" * (1 << 20 | 1)), ("8.png", png(9, 9))], {}, r"E131.*8\.cls .* has 1,048,577 bytes"),
        (samples(0, 8), {"labels": ["one"]}, r'E131.*has the class "1", which is not in `labels`: one'),
        (samples(0, 9, label=("a", "b")), {"labels": ["a", "c"]}, r'E131.*class "b", which is not in `labels`: a, c'),
        ([one for one in samples(0, 8) for _ in range(1) if int(one[0][:4]) % 2], {}, r"E131.*all samples have the class 1"),
        (
            [*samples(0, 8), ("0003.jpg", png(9, 9))],
            {},
            r"E131.*a sample has two images, 0003\.png and 0003\.jpg(.|\n)*image =",
        ),
        ([*samples(0, 8), ("./0003.png", png(9, 9))], {}, r"E131.*two members are named \./0003\.png"),
        ([("readme.txt", b"nothing")], {}, r"E131.*the train data contain no sample with an image"),
        ([*samples(0, 8), ("8.png", b"dear diary"), ("8.cls", b"1")], {}, r"E131.*8\.png in .* cannot be read as an image"),
    ],
)
def test_samples_that_cannot_be_used(
    members: list[tuple[str, bytes]], arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    for _ in range(2):  # also from the list that was kept
        with pytest.raises(UserError, match=message):
            task(write_tar(tmp_path / "a.tar", members), **arguments)


def test_the_image_of_a_sample_with_several_is_named(tmp_path: Path) -> None:
    two = [*samples(0, 10), *((f"{k:04}.jpg", png(9, k)) for k in range(10))]
    assert_same(
        task(write_tar(tmp_path / "a.tar", samples(0, 10))), task(write_tar(tmp_path / "b.tar", two), image="png"), Samples
    )


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_kinds_of_tar_are_read_as_tarfile_reads_them(kind: int, tmp_path: Path) -> None:
    long = "a-long-folder/" * 9  # behind the 100 characters of an old header
    names = ["one.txt", f"{long}two.txt", "drei-ß-三.txt", "./four.txt", "empty.txt"]
    path = write_tar(tmp_path / "a.tar", [(name, name.encode() * 3 if name != "empty.txt" else b"") for name in names], kind)
    with tarfile.open(path) as file:
        due = [(one.name, one.offset_data, one.size) for one in file]
    found = list(members_of(Shard.at(path)))
    assert [(one.name, one.offset, one.size) for one in found] == due
    for one in found[:4]:
        with one.open("rb") as part:
            assert part.read() == one.name.encode() * 3
            assert part.seek(-3, io.SEEK_END) == 3 * len(one.name.encode()) - 3
            assert part.read(10) == b"txt"  # not what follows in the file


def odd(path: Path, change: Callable[[tarfile.TarInfo], None], data: bytes = b"") -> Path:
    """Whole samples, and then a member with another header."""
    with tarfile.open(write_tar(path, samples(0, 20)), "a") as file:
        info = tarfile.TarInfo("0099.png")
        info.size = len(data)
        change(info)
        file.addfile(info, io.BytesIO(data))
    return path


def test_links_devices_and_folders_are_left_out(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(60, 0))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):

        def change(info: tarfile.TarInfo, kind: bytes = kind) -> None:
            info.type, info.linkname = kind, str(secret)

        found = task(odd(tmp_path / "a.tar", change))
        assert sum(len(getattr(found, name)) for name in SPLITS) == 20
    for name in ("../../outside.png", "/etc/outside.png", "C:\\outside.png"):
        members = [*samples(0, 20), (name, png(60, 0)), (name.replace(".png", ".cls"), b"1")]
        found = task(write_tar(tmp_path / "a.tar", members))  # a name, never a path
        assert sum(len(getattr(found, part)) for part in SPLITS) == 21
    assert not list(tmp_path.parent.glob("outside*"))


def with_sum(header: bytearray) -> bytes:
    """A header with its checksum."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def changed(path: Path, place: slice, data: bytes, *, summed: bool = True) -> Path:
    """Samples in the old format, in which the header of the fifth member is changed."""
    write_tar(path, samples(0, 20), tarfile.USTAR_FORMAT)
    whole = bytearray(path.read_bytes())
    with tarfile.open(path) as file:
        begin = file.getmembers()[4].offset
    header = whole[begin : begin + 512]
    header[place] = data
    whole[begin : begin + 512] = with_sum(header) if summed else header
    path.write_bytes(bytes(whole))
    return path


HUGE = b"\x80" + b"\xff" * 11


@pytest.mark.parametrize(
    ("place", "data", "summed", "message"),
    [
        (slice(124, 136), b"77777777777\0", True, r"a member of 8,589,934,591 bytes goes beyond its end"),
        (slice(124, 136), HUGE, True, r"goes beyond its end"),
        (slice(124, 136), b"\xff" * 12, True, r"a negative number"),
        (slice(124, 136), b"12345678910\0", True, r"a number that is not octal"),
        (slice(0, 4), b"oops", False, r"another checksum"),
        (slice(156, 157), b"S", True, r"a sparse file"),
        (slice(156, 157), b"x", True, r"a pax header cannot be read"),
        (slice(124, 157), b"00004000000\0" + b"0" * 20 + b"L", True, r"a header has 1,048,576|goes beyond its end"),
    ],
)
def test_headers_that_lie(place: slice, data: bytes, summed: bool, message: str, tmp_path: Path) -> None:
    path = changed(tmp_path / "a.tar", place, data, summed=summed)
    with pytest.raises(UserError, match=rf"E131.*a\.tar cannot be read at byte [\d,]+: .*({message})(.|\n)*skip_unreadable"):
        task(path)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"size": "99999999999999"}, "goes beyond its end"),
        ({"size": "-5"}, 'the size "-5"'),
        ({"size": "9" * 40}, "the size"),
        ({"GNU.sparse.major": "1", "GNU.sparse.name": "x"}, "sparse"),
        ({"comment": "x" * (1 << 20)}, "a header has 1,048,"),
    ],
)
def test_extended_headers_that_lie(headers: dict[str, str], message: str, tmp_path: Path) -> None:
    path = odd(tmp_path / "a.tar", lambda info: info.pax_headers.update(headers), png(60, 0))
    with pytest.raises(UserError, match=rf"E131.*{message}"):
        task(path)


@pytest.mark.parametrize("cut", [100, 512, 700, 5000, 20_000, "in a header", "in the padding", "behind a member"])
def test_a_shard_that_ends_too_early_is_told_or_read_up_to_there(cut: int | str, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", count=2)
    path = folder / "train-000001.tar"
    with tarfile.open(path) as file:
        fifth = file.getmembers()[4]
    if isinstance(cut, str):
        padding = fifth.offset_data + fifth.size + 3
        cut = {"in a header": fifth.offset + 100, "in the padding": padding, "behind a member": -(-padding // 512) * 512}[cut]
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"E131.*train-000001\.tar cannot be read at byte(.|\n)*skip_unreadable = true"):
        task(folder)
    here = task(folder, skip_unreadable=True)
    assert_same(here, large(folder, skip_unreadable=True))
    total = sum(len(getattr(here, name)) for name in SPLITS)
    assert 20 <= total < 40
    assert "1 of 2 shards are damaged; what is behind is left out (skip_unreadable = true)" in here.notes[0]


def test_an_empty_and_a_compressed_file_are_told(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", samples(0, 4))
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match=r"E131.*is compressed by gzip"):
        task(path)
    for data, message in (
        (b"", "ends without the empty block"),
        (b"dear diary" * 99, "it is no tar file"),
        (b"\0" * 1024, "no sample"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"E131.*{message}"):
            task(path)


def test_damaged_images_are_named_or_left_out(tmp_path: Path) -> None:
    members = samples(0, 20)
    members[6] = ("0003.png", members[6][1][:150])
    path = write_tar(tmp_path / "a.tar", members)
    for read in (task, large):
        with pytest.raises(UserError, match=r"E131.*0003\.png in .*a\.tar cannot be read as an image(.|\n)*skip_unreadable"):
            read(path)
    here = task(path, skip_unreadable=True)
    assert_same(here, large(path, skip_unreadable=True))
    assert_same(here, large(path, skip_unreadable=True, cache=False))
    assert sum(len(getattr(here, name)) for name in SPLITS) == 19
    assert here.notes == (f"1 of 20 images cannot be read and are left out (skip_unreadable = true): 0003.png in {path}.",)


def test_what_is_not_read_is_told(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards")
    (folder / "README.md").write_text("pictures")
    (told,) = task(folder).notes
    assert told == "Not all files in shards are read: 1 × .md are left out; only shards are read (.tar)."
    found = task(write_tar(tmp_path / "a.tar", [*samples(0, 20), ("77.txt", b"no image"), ("78.cls", b"1")]))
    assert found.notes == ("Samples of the shards without an image are left out: 2.",)


def test_samples_are_listed_once_and_again_when_a_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    folder = write_shards(tmp_path / "shards")
    before = task(folder).fingerprint()
    read: list[Path] = []

    def counted(shard: Shard) -> Any:
        read.append(shard.path)
        return members_of(shard)

    monkeypatch.setattr(shard_index, "members_of", counted)
    assert task(folder).fingerprint() == before
    assert read == []
    for file in cache.iterdir():  # a list that is damaged is made again
        file.write_bytes(file.read_bytes()[:-20])
    assert task(folder).fingerprint() == before
    assert len(read) == 2
    write_tar(folder / "train-000001.tar", samples(200, 20))
    assert task(folder).fingerprint() != before
    assert read[2:] == [folder / "train-000001.tar"]


def test_a_shard_that_disappears_or_changes_is_named(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards")
    found = large(folder, cache=False)
    path = folder / "train-000001.tar"
    os.utime(path, ns=(1, 1))
    every = torch.arange(len(found.train))
    with pytest.raises(UserError, match=r"E141.*train-000001\.tar has changed since its members were listed"):
        found.train.at(every)
    path.unlink()
    with pytest.raises(UserError, match=r"E130.*the shard .*train-000001\.tar is not there any more(.|\n)*put it back"):
        found.train.at(every)


@pytest.mark.parametrize("kept", [True, False])
def test_a_killed_epoch_over_shards_ends_with_the_same_bits(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_shards(tmp_path / "shards")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    training = Training(epochs=3, batch_size=4, precision="float32")

    def stop(event: Any) -> None:
        if event["event"] == "progress" and event["done"] >= 10:  # in the second of three epochs of seven batches
            raise KeyboardInterrupt

    def run(name: str, *callbacks: Any) -> Run:
        found = Run(tmp_path / name, seed=1, callbacks=callbacks)
        found.journal.decisions["execution"] = "float32"  # the layout of images is measured otherwise, and may differ
        return found

    monkeypatch.setattr("mirabelle.training.checkpoint.Checkpoint.due", property(lambda _: True))
    with pytest.raises(KeyboardInterrupt):
        fit(copied(model), large(folder, cache=kept), training, run("killed", stop))
    again = fit(copied(model), large(folder, cache=kept), training, run("killed"))
    whole = fit(copied(model), task(folder), training, run("whole"))
    assert all(torch.equal(*pair) for pair in zip(again.parameters(), whole.parameters(), strict=True))
    assert not torch.equal(next(model.parameters()), next(whole.parameters()))
