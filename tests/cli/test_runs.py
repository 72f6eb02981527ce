"""`mirabelle runs`: every run of a folder with its goal, its state and its numbers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from mirabelle.cli import main
from mirabelle.errors import UserError
from mirabelle.run.files import read_json, write_json
from mirabelle.run.lock import FolderLock


def listed(folder: Path, *arguments: str) -> int:
    status: int = main.mirabelle(args=["runs", str(folder), *arguments], standalone_mode=False)
    return status


def as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    assert listed(folder, "--json") == 0
    return {run["folder"]: run for run in json.loads(capsys.readouterr().out)}


@pytest.fixture
def runs(original: Path, tmp_path: Path) -> Path:
    """Four runs: ended and missed, ended and met, stopped, and damaged; and a folder that is none."""
    missed, met, stopped, damaged = (
        Path(shutil.copytree(original, tmp_path / "runs" / name)) for name in ("a", "deep/b", "c", "d")
    )
    data = read_json(met / "report.json")
    data["goal"] |= {"asked": {"size": "9 kB"}, "met": True, "shortfalls": []}
    write_json(met / "report.json", data)
    (stopped / "report.json").unlink()
    (stopped / "steps" / "1-quantize.static" / "profile.json").unlink()
    (damaged / "report.json").write_text("{")
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "again").symlink_to(missed, target_is_directory=True)
    return tmp_path / "runs"


def test_each_run_has_its_state_and_its_numbers(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(runs, capsys)
    assert {name: run["state"] for name, run in found.items()} == {
        "a": "goal missed", "c": "stopped", "d": "damaged", "deep/b": "goal met",
    }  # fmt: skip
    report = json.loads((runs / "a" / "report.json").read_text())
    ended = found["a"]
    assert ended["goal"] == {"size": "1 B"}
    assert "size is" in str(ended["detail"])
    assert ended["values"] == [report["start"]["metric"]["value"], report["end"]["metric"]["value"]]
    assert ended["packed"] == [report["start"]["size_bytes"]["packed"], report["end"]["size_bytes"]["packed"]]
    assert ended["milliseconds"] == [report["start"]["latency_ms"]["median"], report["end"]["latency_ms"]["median"]]
    profile = json.loads((runs / "c" / "steps" / "0-baseline" / "profile.json").read_text())["profile"]
    stopped = found["c"]
    assert stopped["detail"] == "1 of 2 steps done; quantize.Static"
    assert stopped["values"] == [None, profile["metric"]["value"]]
    assert stopped["packed"] == [None, profile["size_bytes"]["packed"]]
    assert found["deep/b"]["detail"] == ""

    assert listed(runs) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.split()[:4] == ["run", "state", "goal", "metric"]
    assert len(lines) == 4
    assert "1 B" in lines[0]
    assert "→" in lines[0]
    assert "→" not in lines[1], "an unfinished run has no end"


def test_a_run_that_a_process_works_on_is_running(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = FolderLock(runs / "c")
    try:
        found = as_json(runs, capsys)["c"]
    finally:
        lock.release()
    assert found["state"] == "running"
    assert "process" in str(found["detail"])


def test_the_folder_of_a_run_lists_itself(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(as_json(runs / "a", capsys)) == ["."]


def test_what_cannot_be_read_does_not_hide_the_rest(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(folder: Path) -> object:
        raise PermissionError(13, "Permission denied", str(folder / "steps"))

    monkeypatch.setattr("mirabelle.report.runs.progress_of", refused)
    found = as_json(runs, capsys)
    assert (found["a"]["state"], found["c"]["state"]) == ("goal missed", "damaged")
    assert "steps cannot be read: Permission denied" in str(found["c"]["detail"])


def test_a_goal_of_another_kind_is_listed_as_text(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = runs / "c" / "recipe.toml"
    text = re.sub(r"# digest.*\n", "", recipe.read_text())
    for table, due in (("[goal]\nsince = 2020-01-01", {"since": "2020-01-01", "size": "1 B"}), ("[aim]", {})):
        recipe.write_text(text.replace("[goal]", table))
        found = as_json(runs, capsys)["c"]
        assert (found["state"], found["goal"]) == ("stopped", due)


@pytest.mark.parametrize("place", ["absent", "notes"])
def test_a_folder_without_runs_is_refused(place: str, runs: Path) -> None:
    with pytest.raises(UserError, match="E130"):
        listed(runs / place)
