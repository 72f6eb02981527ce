"""Tables that are encoded into a file and read when needed give what tables in memory give; and folders of .parquet files."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mirabelle import Run, Training
from mirabelle.errors import UserError
from mirabelle.model.state import copied
from mirabelle.sources.datasets import cache, encoded, row_file, table
from mirabelle.sources.datasets import cache as cache_of_data
from mirabelle.task.indexed import Indexed
from mirabelle.task.preprocessing import Table
from mirabelle.training import evaluate, fit
from same_tasks import SPLITS, same, task

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
ROWS = 900


def columns(rows: int = ROWS, seed: int = 0) -> dict[str, Any]:
    """Columns of every kind: numbers with gaps, truth values whose spelling differs, dates, few words and many, a target."""
    draw = np.random.default_rng(seed)
    numbers = draw.normal(size=rows)
    days = [dt.date(2020, 1, 1) + dt.timedelta(int(k)) for k in draw.integers(0, 900, rows)]
    return {
        "number": pa.array([None if k % 97 == 0 else number for k, number in enumerate(numbers.tolist())]),
        "whole": pa.array(draw.integers(0, 9, rows)),
        "truth": pa.array([("True", "False", "true", "maybe")[k] for k in draw.integers(0, 4, rows)]),
        "day": pa.array(days),
        "city": pa.array([f"city {k}" for k in draw.integers(0, 90, rows)]).dictionary_encode(),
        "price": pa.array([f"{k},5" for k in draw.integers(0, 5000, rows)]),
        "y": pa.array(((numbers > 0) + draw.integers(0, 2, rows)).tolist()),
    }


def written(path: Path, content: dict[str, Any], group: int = 250) -> Path:
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pa.table(content), path, row_group_size=group)
    return path


def part(content: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    return {name: cells.slice(start, stop - start) for name, cells in content.items()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a large table; its files are read in many small parts."""
    monkeypatch.setenv(cache.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(encoded, "_ROWS", 70)
    monkeypatch.setattr(row_file, "_SPAN", 1 << 12)
    return tmp_path


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, every table is large."""
    return lambda: monkeypatch.setattr(table, "IN_MEMORY", 0)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"categories": ["whole"], "embed": ["city"]}, {"target": "number", "ignore": ["y"]}, {"target": "day"}],
)
def test_a_large_table_has_the_same_bits(folder: Path, large: Callable[[], None], arguments: dict[str, Any]) -> None:
    content = columns()
    if arguments.get("target") == "number":
        content["number"] = pa.array(np.random.default_rng(1).normal(size=ROWS))
    path = written(folder / "t.parquet", content)
    here = task(path, **arguments)
    large()
    there = task(path, **arguments)
    same(here, there)
    assert here.notes == there.notes
    assert all(isinstance(getattr(there, name), Indexed) for name in SPLITS)
    assert not any(isinstance(getattr(here, name), Indexed) for name in SPLITS)
    assert isinstance(here.preprocessing, Table)
    assert (bool(here.preprocessing.embedded), bool(here.labels)) == ("embed" in arguments, "target" not in arguments)


def test_a_large_text_table_has_the_same_bits(folder: Path, large: Callable[[], None]) -> None:
    texts = [["" if cell is None else str(cell) for cell in cells.to_pylist()] for cells in columns().values()]
    lines = "\n".join(map(";".join, zip(*texts, strict=True)))
    (folder / "t.csv").write_text(f"{';'.join(columns())}\n{lines}\n")
    here = task(folder / "t.csv")
    large()
    same(here, task(folder / "t.csv"))


def test_what_is_in_memory_is_decided_by_the_bytes_of_the_inputs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(folder / "t.parquet", columns())
    features = task(path).preprocessing.shape[0]  # type: ignore[union-attr]
    for limit, kind in ((ROWS * features * 4, False), (ROWS * features * 4 - 1, True)):
        monkeypatch.setattr(table, "IN_MEMORY", limit)
        assert isinstance(task(path).train, Indexed) == kind


def test_a_table_is_encoded_once_and_again_only_when_it_has_changed(folder: Path, large: Callable[[], None]) -> None:
    large()
    content = columns()
    path = written(folder / "t.parquet", content)
    before = task(path)
    (file,) = (folder / "cache").iterdir()
    time = file.stat().st_mtime_ns
    again = task(path)
    assert [file.stat().st_mtime_ns] == [time]
    assert again.fingerprint() == before.fingerprint()
    (folder / "moved").mkdir()
    moved = path.rename(folder / "moved" / "t.parquet")
    assert task(moved).fingerprint() == before.fingerprint()  # the values say what the data are, not the name
    values = content["whole"].to_pylist()
    values[0], values[1] = values[1], values[0]
    assert values[0] != values[1]
    changed = task(written(moved, {**content, "whole": pa.array(values)}))  # extremes, mean and deviation are as before
    assert changed.preprocessing == before.preprocessing
    assert changed.fingerprint() != before.fingerprint()


def test_a_training_that_is_killed_in_an_epoch_ends_with_the_same_bits(
    folder: Path, large: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(folder / "t.parquet", columns())
    here = task(path)
    large()
    there = task(path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(here.train.first(1).inputs.shape[1], 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    training = Training(epochs=2, batch_size=16, precision="float32")
    whole = fit(copied(model), here, training, Run(folder / "whole", seed=1))
    row = there.train.first(1).inputs.nbytes
    monkeypatch.setattr("mirabelle.task.indexed._TOGETHER", 3 * 16 * row)  # three batches are read together
    monkeypatch.setattr("mirabelle.training.checkpoint.Checkpoint.due", property(lambda _: True))

    def stop(event: Any) -> None:
        if event["event"] == "progress" and event["done"] >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(copied(model), there, training, Run(folder / "killed", seed=1, callbacks=[stop]))
    again = fit(copied(model), task(path), training, Run(folder / "killed", seed=1))
    assert all(torch.equal(*pair) for pair in zip(again.parameters(), whole.parameters(), strict=True))
    assert (evaluate(again, here.test, here) == evaluate(again, there.test, there)).all()


_PROCESS = """
import json, sys, time
from pathlib import Path
from mirabelle.sources import task_from
from mirabelle.sources.datasets import encoded, table
table.IN_MEMORY = 0
write, count = encoded._write, []
def slow(*given):
    count.append(1)
    time.sleep(1)
    write(*given)
encoded._write = slow
print("ready", flush=True)
sys.stdin.readline()
path = Path(sys.argv[1])
task = task_from(f"./{path.name}", {}, data_folder=None, folder=path.parent)
print(json.dumps([len(count), task.fingerprint()]))
"""


def test_two_processes_at_once_encode_a_table_once(folder: Path, large: Callable[[], None]) -> None:
    path = written(folder / "t.parquet", columns())
    command = [sys.executable, "-c", _PROCESS, str(path)]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) for _ in "12"
    ]
    for one in both:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in both:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    found = [json.loads(one.communicate(timeout=60)[0]) for one in both]
    assert sorted(count for count, _ in found) == [0, 1]
    large()
    assert all(own == json.loads(json.dumps(task(path).fingerprint())) for _, own in found)
    assert len(list((folder / "cache").iterdir())) == 1


def test_without_space_one_line_says_what_is_needed(
    folder: Path, large: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(folder / "t.parquet", columns())
    large()
    monkeypatch.setattr(cache, "SPARE", 1e12)
    with pytest.raises(UserError, match=r"E202.*the encoded rows of .*t\.parquet need .* GB are free\n.*MIRABELLE_CACHE"):
        task(path)
    monkeypatch.undo()
    monkeypatch.setattr(table, "IN_MEMORY", 0)
    (folder / "file").write_text("")
    monkeypatch.setenv(cache.CACHE, str(folder / "file"))
    with pytest.raises(UserError, match=r"E202.*cannot write .*file"):
        task(path)


def test_a_file_of_rows_that_is_damaged_or_gone_is_told(folder: Path, large: Callable[[], None]) -> None:
    large()
    path = written(folder / "t.parquet", columns())
    found = task(path)
    (file,) = (folder / "cache").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    for read in (lambda: found.train.first(3), lambda: task(path)):
        with pytest.raises(UserError, match=r"E141.*has changed or is damaged: it has .* bytes instead of .*\n.*remove it"):
            read()
    file.unlink()
    with pytest.raises(UserError, match=r"E130.*\.rows is gone since it was opened\n.*run the same command again"):
        found.train.first(3)
    assert torch.equal(task(path).train.inputs, task(path).train.inputs)
    file.with_name(f"{file.name}.4194303.0.{cache_of_data._here()}.writing").write_bytes(
        b"half"
    )  # of a process that was killed
    file.with_name(f"{file.name}.lock").touch()
    file.unlink()
    task(path)
    assert [left.name for left in (folder / "cache").iterdir()] == [file.name]
    assert file.read_bytes() == content


def test_the_target_of_a_large_table_needs_no_words() -> None:
    values = np.random.default_rng(0).normal(size=200_000)
    assert table._has_many_values(values)
    assert not table._has_many_values(values.round() * 0 + np.arange(len(values)) % 20)
    late = np.append(np.arange(100_000) % 20, 20.0)
    assert table._has_many_values(late)


def test_the_files_of_a_folder_are_one_table(folder: Path, large: Callable[[], None]) -> None:
    content = columns()
    here = task(written(folder / "whole.parquet", content))
    for k, (start, stop) in enumerate(((0, 100), (100, 101), (101, 600), (600, ROWS))):
        written(folder / "parts" / f"{k}.parquet", part(content, start, stop))
    (folder / "parts" / "_SUCCESS").write_text("")
    found = task(folder / "parts")
    same(here, found)
    assert found.name == "parts"
    assert set(found.notes) - set(here.notes) == {
        "Not all files in parts are read: 1 × no suffix are left out; only tables are read (.parquet)."
    }
    large()
    same(here, task(folder / "parts"))
    os.renames(folder / "parts", folder / "parts.parquet")  # as Spark names its folders
    same(here, task(folder / "parts.parquet"))


@pytest.mark.parametrize("names", [("train/0", "train/1", "val/0", "test/0"), ("train-0", "train-1", "validation", "test_x")])
def test_splits_in_a_folder_of_tables(folder: Path, names: tuple[str, ...], large: Callable[[], None]) -> None:
    content, bounds = columns(), (0, 200, 500, 600, ROWS)
    for name, start, stop in zip(names, bounds, bounds[1:], strict=False):
        (folder / "parts" / name).parent.mkdir(parents=True, exist_ok=True)
        written(folder / "parts" / f"{name}.parquet", part(content, start, stop))
    found = task(folder / "parts")
    assert [len(getattr(found, name)) for name in SPLITS] == [500, 100, 300]
    assert found.test.targets.tolist() == content["y"].to_pylist()[600:]
    learned = content["whole"].to_numpy()[:500]
    assert isinstance(found.preprocessing, Table)
    assert found.preprocessing.mean[found.preprocessing.columns.index("whole")] == pytest.approx(learned.mean(), abs=1e-5)
    with pytest.raises(UserError, match=r"E111.*test_fraction = 0\.5 is given, but the source has test data of its own"):
        task(folder / "parts", test_fraction=0.5)
    large()
    same(found, task(folder / "parts"))


def test_files_that_are_not_one_table_are_told(folder: Path) -> None:
    content = columns(60)
    written(folder / "parts" / "a.parquet", content)
    for name, cells, message in (
        ("whole", content["number"], r'"whole" is int64 in .*a\.parquet and double in .*b\.parquet'),
        ("whole", None, r'"whole" is int64 in .*a\.parquet and absent from .*b\.parquet'),
        ("other", content["whole"], r'"other" is absent from .*a\.parquet and int64 in .*b\.parquet'),
    ):
        changed = {**content, name: cells}
        written(folder / "parts" / "b.parquet", {key: value for key, value in changed.items() if value is not None})
        with pytest.raises(UserError, match=f"E131.*files of a table must have the same columns; {message}\n.*same columns"):
            task(folder / "parts")
    other = dict(reversed(content.items()))
    written(folder / "parts" / "b.parquet", {**other, "city": content["city"].cast(pa.string())})
    found = task(folder / "parts", target="y")  # the order of columns, and whether words are codes, may differ
    assert sum(len(getattr(found, name)) for name in SPLITS) == 120
    (folder / "parts" / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"E131.*b\.parquet is not a \.parquet file"):
        task(folder / "parts")
    (folder / "deep" / "a" / "b").mkdir(parents=True)
    written(folder / "deep" / "a" / "x.parquet", content)
    with pytest.raises(UserError, match=r"E130.*no \.parquet file directly in .*deep\n.*put the files"):
        task(folder / "deep")
    (folder / "empty" / "train").mkdir(parents=True)
    written(folder / "empty" / "train" / "x.parquet", content)
    written(folder / "empty" / "test" / "x.parquet", part(content, 0, 0))
    with pytest.raises(UserError, match=r"E130.*empty, test, has no rows"):
        task(folder / "empty")
    twice = pa.table([content["whole"], content["whole"], content["y"]], names=["a", "a", "y"])
    parquet.write_table(twice, folder / "twice.parquet")
    with pytest.raises(UserError, match=r'E131.*twice\.parquet has two columns named "a"'):
        task(folder / "twice.parquet")


def test_files_that_change_while_they_are_read_are_told(folder: Path, large: Callable[[], None]) -> None:
    large()
    content = columns()
    for k in range(2):
        written(folder / "parts" / f"{k}.parquet", content)
    second = folder / "parts" / "1.parquet"
    learn = table.learned_table

    def disturbed(disturb: Callable[[], object]) -> None:
        def learned(*given: Any) -> Any:
            found = learn(*given)
            disturb()
            return found

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(table, "learned_table", learned)
            patched.setattr(table, "_KEPT_CELLS", 0)
            task(folder / "parts")

    with pytest.raises(UserError, match=r"E131.*1\.parquet has changed since it was first read\n.*run the same command again"):
        disturbed(lambda: written(second, columns(ROWS, seed=1)))
    with pytest.raises(UserError, match=r"E130.*1\.parquet is gone since it was first read\n.*restore it"):
        disturbed(second.unlink)
    assert not list((folder / "cache").iterdir())  # no half file
