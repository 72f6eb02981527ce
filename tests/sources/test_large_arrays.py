"""Arrays that are read when they are needed give what arrays in memory give; and folders of .npy files."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from mirabelle import Run, Training
from mirabelle.errors import UserError
from mirabelle.model.state import copied
from mirabelle.sources.datasets import arrays, cache, row_file, stored_arrays
from mirabelle.task.indexed import Indexed
from mirabelle.training import fit
from same_tasks import SPLITS, task
from same_tasks import same as same_tasks

Given = Mapping[str, npt.NDArray[Any]]
same = partial(same_tasks, notes=True)
ROWS = 120


def draws(*shape: int, most: int = 256, kind: str = "uint8") -> npt.NDArray[Any]:
    return np.random.default_rng(len(shape)).integers(0, most, shape).astype(kind)


COUNT = np.arange(ROWS)[:, None]
CLASSES = draws(ROWS, most=3)
CASES: dict[str, tuple[Given, dict[str, Any]]] = {
    "grey": ({"x_train": draws(ROWS, 9, 7), "y_train": CLASSES, "x_test": draws(30, 9, 7), "y_test": CLASSES[:30]}, {}),
    "channels first": ({"train_images": draws(ROWS, 3, 9, 7), "train_labels": CLASSES[:, None]}, {"layout": "channels-last"}),
    "16 bits": ({"inputs": draws(ROWS, 9, 7, most=4000, kind="uint16"), "targets": CLASSES}, {}),
    "float64": ({"inputs": np.random.default_rng(0).normal(size=(ROWS, 5)), "targets": np.linspace(0, 1, ROWS)}, {}),
    "other order of bytes": ({"inputs": draws(ROWS, 5, kind=">f2"), "targets": CLASSES}, {}),
    "Fortran": (
        {"inputs": np.asfortranarray(draws(ROWS, 5, 3, kind="float32")), "targets": draws(ROWS, 4, most=2)},
        {"kind": "multi-label"},
    ),
    "tokens": ({"inputs": draws(ROWS, 12, kind="int32"), "targets": CLASSES}, {"kind": "unlabelled"}),
}


def saved(place: Path, content: Given, form: str) -> Path:
    if form == "folder":
        place.mkdir()
        for name, array in content.items():
            np.save(place / f"{name}.npy", array)
        return place
    path = place.with_suffix(".npz")
    (np.savez_compressed if form == "compressed" else np.savez)(path, **content)  # type: ignore[arg-type]
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of large arrays, which are read in many small parts."""
    monkeypatch.setenv(cache.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(row_file, "_SPAN", 1 << 9)
    monkeypatch.setattr(row_file, "_BLOCK", 1 << 9)
    monkeypatch.setattr(stored_arrays, "_COPIED", 1 << 9)
    return tmp_path


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, all arrays are large."""
    return lambda: monkeypatch.setattr(arrays, "IN_MEMORY", 0)


@pytest.mark.parametrize("form", ["stored", "compressed", "folder"])
@pytest.mark.parametrize("case", list(CASES))
def test_large_arrays_have_the_same_bits(folder: Path, large: Callable[[], None], case: str, form: str) -> None:
    content, arguments = CASES[case]
    path = saved(folder / "data", content, form)
    here = task(path, **arguments)
    large()
    there = task(path, **arguments)
    same(here, there)
    assert all(isinstance(getattr(there, name), Indexed) for name in SPLITS)
    unpacked = (form == "compressed" or case == "Fortran") * (2 if "x_test" in content else 1)
    assert len(list((folder / "cache").glob("*.rows"))) == unpacked
    again = task(path, **arguments)
    assert again.fingerprint() == there.fingerprint()
    assert again.preprocessing == there.preprocessing


def test_what_is_in_memory_is_decided_by_the_bytes_of_the_inputs_as_floats(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(folder / "data", CASES["grey"][0], "stored")
    for limit, kind in (((ROWS + 30) * 63 * 4, False), ((ROWS + 30) * 63 * 4 - 1, True)):
        monkeypatch.setattr(arrays, "IN_MEMORY", limit)
        assert isinstance(task(path).train, Indexed) == kind


@pytest.mark.parametrize("form", ["stored", "compressed", "folder"])
def test_other_values_are_other_data(folder: Path, large: Callable[[], None], form: str) -> None:
    large()
    content = dict(CASES["grey"][0])
    before = task(saved(folder / "data", content, form)).fingerprint()
    other = content["x_train"].copy()
    other[0, 0, 0], other[0, 0, 1] = other[0, 0, 1], other[0, 0, 0]
    assert (other != content["x_train"]).any()
    changed = task(saved(folder / "changed", {**content, "x_train": other}, form)).fingerprint()
    assert changed["train"] != before["train"]
    assert changed["test"] == before["test"]
    assert task(saved(folder / "again", content, form)).fingerprint() == before


def test_a_training_that_is_killed_in_an_epoch_ends_with_the_same_bits(
    folder: Path, large: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(folder / "data", CASES["grey"][0], "compressed")
    here = task(path)
    large()
    there = task(path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(63, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    training = Training(epochs=2, batch_size=16, precision="float32")
    whole = fit(copied(model), here, training, Run(folder / "whole", seed=1))
    monkeypatch.setattr("mirabelle.training.checkpoint.Checkpoint.due", property(lambda _: True))

    def stop(event: Any) -> None:
        if event["event"] == "progress" and event["done"] >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(copied(model), there, training, Run(folder / "killed", seed=1, callbacks=[stop]))
    again = fit(copied(model), task(path), training, Run(folder / "killed", seed=1))
    assert all(torch.equal(*pair) for pair in zip(again.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("form", ["stored", "compressed", "folder"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": np.where(COUNT == 7, np.nan, 0.5)}, r"E131.*inputs contain NaN.* in 1 of 120 samples, first in row 7"),
        ({"inputs": np.where(COUNT > 9, 1e300, 0.5)}, r"E131.*inputs contain NaN.* in 110 of 120 samples, first in row 10"),
        ({"inputs": np.ones((ROWS, 2), complex)}, r"E131.*must be numbers; got complex128"),
        ({"inputs": np.ones(())}, r"E131.*must have the same length, above 0; got 1 and 120"),
        ({"targets": np.arange(ROWS - 1) % 3}, r"E131.*must have the same length, above 0; got 120 and 119"),
        ({"targets": np.arange(ROWS) % 3 - 1}, r"E131.*targets must be from 0 to 1"),
        ({"inputs": np.ones((ROWS, 2, 2, 2), np.uint8)}, r"E131.*images of uint8 or uint16 must be"),
        ({"inputs": None, "x": np.ones((ROWS, 2))}, r"E131.*has targets, but not its counterpart"),
    ],
)  # fmt: skip
def test_large_arrays_are_checked_as_small_ones(
    folder: Path, large: Callable[[], None], changes: dict[str, Any], words: str, form: str
) -> None:
    content = {"inputs": np.ones((ROWS, 2)), "targets": np.arange(ROWS) % 3, **changes}
    path = saved(folder / "data", {name: array for name, array in content.items() if array is not None}, form)
    large()
    with pytest.raises(UserError, match=words) as caught:
        task(path)
    assert len(str(caught.value).splitlines()) == 2
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("form", ["stored", "compressed", "folder"])
def test_pickles_are_refused(folder: Path, form: str) -> None:
    for name, content in (("one", {"inputs": np.array([{}] * 9)}), ("other", {"targets": np.array(["a", {}] * 9)})):
        path = saved(folder / name, {"inputs": np.ones((9, 2)), "targets": np.arange(9) % 2, **content}, form)
        with pytest.raises(UserError, match=r"E143.*contains Python objects \(a pickle\), which may run code"):
            task(path)


def lying(place: Path, told: str, form: str) -> Path:
    """Arrays whose inputs have another shape in their header, and otherwise all is well."""
    path = saved(place, {"inputs": np.ones((ROWS, 2)), "targets": np.arange(ROWS) % 3}, "folder")
    content = (path / "inputs.npy").read_bytes()
    header, end = content.replace(b"(120, 2)", told.encode()), content.index(b"\n") + len(told) - len("(120, 2)")
    spaces = len(header) - len(content)
    (path / "inputs.npy").write_bytes(header[: end - spaces] + header[end:])
    if form == "folder":
        return path
    packed = zipfile.ZIP_DEFLATED if form == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(place.with_suffix(".npz"), "w", packed) as archive:
        for file in path.iterdir():
            archive.write(file, file.name)
    return place.with_suffix(".npz")


# The most memory of this process alone; that of `resource` begins with that of its parent.
_PEAK = """
import re
from pathlib import Path
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
_LIMITED = f"""{_PEAK}
import resource, sys
from pathlib import Path
from mirabelle.errors import UserError
from mirabelle.sources import task_from
import mirabelle.sources.datasets.arrays, mirabelle.task.task
before = peak()
resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
path = Path(sys.argv[1])
try:
    task_from("./" + path.name, dict(), data_folder=None, folder=path.parent)
except UserError as error:
    print(error)
print(peak() - before < 100_000)
"""


@pytest.mark.parametrize("form", ["stored", "compressed", "folder"])
def test_a_header_that_lies_takes_no_memory(folder: Path, form: str) -> None:
    more = "is damaged: float64 (1200, 2) needs 19,200 bytes, and 1,920 are there"
    with pytest.raises(UserError, match=rf"E131.*{re.escape(more)}"):
        task(lying(folder / "more", "(1200, 2)", form))
    path = lying(folder / "data", "(99999999999, 2)", form)
    done = subprocess.run([sys.executable, "-c", _LIMITED, str(path)], capture_output=True, text=True, check=True)
    told, _, same_memory = done.stdout.splitlines()
    assert same_memory == "True"
    assert "is damaged: float64 (99999999999, 2) needs 1,599,999,999,984 bytes, and 1,920 are there" in told


def test_a_directory_of_an_archive_that_lies_takes_no_memory(folder: Path) -> None:
    path = lying(folder / "data", "(268435440, 2)", "compressed")
    content, size = path.read_bytes(), (folder / "data" / "inputs.npy").stat().st_size
    assert content.count(size.to_bytes(4, "little")) == 2  # before the member, and in the directory
    path.write_bytes(content.replace(size.to_bytes(4, "little"), (268435440 * 16 + size - 1920).to_bytes(4, "little")))
    with pytest.raises(UserError, match=r"E131.*float64 \(268435440, 2\) needs 4,294,967,040 bytes, and .* are there"):
        task(path)


def test_a_damaged_archive_is_told(folder: Path, large: Callable[[], None]) -> None:
    large()
    content = {"inputs": np.random.default_rng(0).normal(size=(ROWS, 5)), "targets": np.arange(ROWS) % 3}
    for form in ("stored", "compressed"):
        path = saved(folder / form, content, form)
        good = bytearray(path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo("inputs.npy")
            middle = info.header_offset + info.compress_size // 2
        bad = bytearray(good)
        bad[middle] ^= 1
        path.write_bytes(bad)
        with pytest.raises(UserError, match=rf"E131.*{form}\.npz is damaged: .*\n.*save it again"):
            task(path)
        path.write_bytes(good[:-30])
        with pytest.raises(UserError, match=rf"E1\d\d.*{form}\.npz"):
            task(path)
        path.write_bytes(good)
        assert isinstance(task(path).train, Indexed)
    (folder / "headers").mkdir()
    for data in (b"", b"\x93NUMPY\x09\x00\x00\x00", b"\x93NUMPY\x01\x00\x46\x00{'descr'", b"no array"):
        (folder / "headers" / "inputs.npy").write_bytes(data)
        with pytest.raises(UserError, match=r"E131.*inputs\.npy is damaged"):
            task(folder / "headers")


def test_a_file_that_changes_while_it_is_read_is_told(folder: Path, large: Callable[[], None]) -> None:
    large()
    path = saved(folder / "data", CASES["grey"][0], "folder")
    found = task(path)
    file = path / "x_train.npy"
    content = file.read_bytes()
    file.write_bytes(content)
    with pytest.raises(
        UserError, match=r"E141.*x_train\.npy has changed.*written to after it had been opened first\n.*restore"
    ):
        found.train.first(2)
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"E141.*x_train\.npy has changed or is damaged: it has .* bytes instead of"):
        found.train.first(2)
    file.unlink()
    with pytest.raises(UserError, match=r"E130.*x_train\.npy is gone since it was opened\n.*restore it"):
        found.train.first(2)


def test_without_space_one_line_says_what_is_needed(
    folder: Path, large: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    large()
    monkeypatch.setattr(cache, "SPARE", 1e15)
    packed = saved(folder / "data", CASES["grey"][0], "compressed")
    with pytest.raises(UserError, match=r"E202.*unpacked values of x_t.*\.npy in .*data\.npz need .*\n.*MIRABELLE_CACHE"):
        task(packed)
    stored = saved(folder / "stored", CASES["grey"][0], "stored")
    (folder / "none").write_text("")
    monkeypatch.setenv(cache.CACHE, str(folder / "none"))
    assert isinstance(task(stored).train, Indexed)  # what is read in its place needs no folder


_READING = f"""{_PEAK}
import sys
import numpy as np
from mirabelle.sources.datasets.row_file import RowFile
path, count, width = Path(sys.argv[1]), 200_000, 250
found = path.stat()
rows = RowFile(path, 0, count, (width,), np.dtype(np.float32), found.st_size, found.st_mtime_ns, "")
before = peak()
index = np.random.default_rng(0).permutation(count)[:20_000]
assert np.array_equal(rows.read(index)[:, 0], index % 1000 == 0)
assert sum(len(block) for block in rows.blocks()) == count
print(peak() - before)
"""


def test_of_a_large_file_a_part_is_mapped_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "large"
    content = np.zeros((200_000, 250), np.float32)
    content[::1000] = 1
    content.tofile(path)
    done = subprocess.run([sys.executable, "-c", _READING, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150_000  # kB: 64 MiB are mapped and 20 MB are the result, of a file of 200 MB


@pytest.mark.parametrize("limits", [{}, {"_LONG": 1}, {"_APART": 0}, {"_APART": 0, "_SPAN": 8 * 24}, {"_SPAN": 1}])
def test_all_ways_to_read_rows_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]) -> None:
    for name, limit in limits.items():
        monkeypatch.setattr(row_file, name, limit)
    content = np.arange(3000 * 6, dtype=np.float32).reshape(3000, 2, 3)
    (tmp_path / "rows").write_bytes(b"head!" + content.tobytes() + b"end")
    found = (tmp_path / "rows").stat()
    rows = row_file.RowFile(tmp_path / "rows", 5, 3000, (2, 3), content.dtype, found.st_size, found.st_mtime_ns, "remedy")
    for index in (np.array([2999, 0, 7, 7, 2998]), np.random.default_rng(0).permutation(3000).astype(np.int32), np.arange(0)):
        assert np.array_equal(rows.read(index), content[index])
    assert np.array_equal(np.concatenate(list(rows.blocks())), content)
