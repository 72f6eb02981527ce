"""`mirabelle report`: the same page again, or how far a run has come."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mirabelle.cli import main
from mirabelle.errors import UserError
from mirabelle.run.files import read_json, write_json


def report(*arguments: str | Path) -> int:
    status: int = main.mirabelle(args=["report", *map(str, arguments)], standalone_mode=False)
    return status


@pytest.fixture
def ended(original: Path, tmp_path: Path) -> Path:
    """A copy of a real run that has ended and missed its goal."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def test_the_pages_come_out_as_the_run_made_them(ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("report.html", "README.md", "report.json")
    made = {name: (ended / name).read_bytes() for name in names}
    (ended / "report.html").unlink()
    (ended / "README.md").write_text("changed")
    assert report(ended) == 0
    assert {name: (ended / name).read_bytes() for name in names} == made
    shown = capsys.readouterr().out
    assert json.loads(made["report.json"])["verdict"] in shown
    assert "goal not met: size is" in shown
    assert f"report: {ended / 'report.html'}" in shown
    assert "\x1b" not in shown

    (ended / "README.md").write_text("changed")
    assert report(ended, "--out", tmp_path / "deep" / "page.html", "--json") == 0
    assert (tmp_path / "deep" / "page.html").read_bytes() == made["report.html"]
    assert (ended / "README.md").read_text() == "changed", "with --out nothing is written into the folder"
    assert capsys.readouterr().out.encode() == made["report.json"]

    data = json.loads(made["report.json"])
    (baseline,) = data["curves"]
    assert (baseline["step"], [epoch["epoch"] for epoch in baseline["epochs"]]) == ("baseline", [1, 2, 3])
    difference = data["end"]["metric"]["value"] - data["start"]["metric"]["value"]
    assert data["comparison"]["difference"]["value"] == pytest.approx(difference, abs=1e-12)


def test_a_run_that_has_not_ended_says_how_far_it_has_come(ended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ended / "report.json").unlink()
    (ended / "steps" / "1-quantize.static" / "profile.json").unlink()
    page = (ended / "report.html").stat().st_mtime_ns
    assert report(ended) == 0
    shown = capsys.readouterr().out
    assert "baseline" in shown
    assert "1 of 2 steps done; now: quantize.Static" in shown
    assert "run the same command again" in shown
    assert (ended / "report.html").stat().st_mtime_ns == page
    assert report(ended, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["ended"], data["now"], [entry["step"] for entry in data["done"]]) == (False, "quantize.Static", ["baseline"])


def test_mistakes(ended: Path, tmp_path: Path) -> None:
    for folder, code in ((tmp_path / "absent", "E130"), (tmp_path, "E130")):
        with pytest.raises(UserError) as caught:
            report(folder)
        assert caught.value.code == code
    for content, code in (("{", "E141"), ("{}", "E141"), ('{"schema": 9}', "E142")):
        (ended / "report.json").write_text(content)
        with pytest.raises(UserError) as caught:
            report(ended)
        assert caught.value.code == code


def test_a_terminal_shows_names_as_they_are(ended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read_json(ended / "report.json")
    data["end"]["metric"]["name"] = "f1[red]"
    write_json(ended / "report.json", data)
    assert report(ended) == 0
    assert "f1[red] (95 %)" in capsys.readouterr().out
