"""`mirabelle auto` as a user types it: with options or a recipe's model and goal, in words or as JSON, met or missed."""

from __future__ import annotations

import json
import shutil
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from mirabelle.cli import main

NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 3))
"""
RECIPE = """
schema = 1
[model]
from = "./net.py:net"
[task]
data = "points.npz"
[baseline]
train = { epochs = 6, batch_size = 32, lr = 3e-3, precision = "float32" }
[goal]
max_drop = "3pt"
size = "10%"
latency = "any"
[[step]]
use = "quantize.Static"
"""


@pytest.fixture(scope="module")
def planned(points_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which a plan was made, whose model is trained and measured since then; and what was printed."""
    place = tmp_path_factory.mktemp("planned")
    shutil.copy(points_file, place)
    (place / "net.py").write_text(NET)
    (place / "recipe.toml").write_text(RECIPE)
    with chdir(place), redirect_stdout(StringIO()) as out:
        assert main.run(["auto", "recipe.toml", "--dry-run", "--quiet"]) == 0
    assert not list((place / "runs").glob("auto-recipe/attempt-*"))
    return place, out.getvalue()


@pytest.fixture
def place(planned: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(planned[0])
    return planned[0]


def test_a_dry_run_shows_the_plan_alone(planned: tuple[Path, str]) -> None:
    assert "Nothing was run" in planned[1]


def test_a_recipes_model_data_and_goal_are_used(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["auto", "recipe.toml", "--json", "--time", "20 s"]) == 0
    out, told = capsys.readouterr()
    found = json.loads(out)
    assert found["met"]
    assert found["attempts"][-1]["fits"]
    assert found["plan"]["expected"]["size"] <= 0.1 * 4 * 7267
    assert "expected accuracy before any training" in told
    folder = place / "runs" / "auto-recipe"
    assert (folder / "model.mira").stat().st_size == json.loads((folder / "report.json").read_text())["end"]["size_bytes"][
        "packed"
    ]
    trained = folder / "start" / "steps" / "0-baseline" / "model.safetensors"
    assert str(trained) in (folder / "recipe.toml").read_text(), (
        "the recipe that was found names the weights that it begins with"
    )
    assert main.run(["run", str(folder / "recipe.toml"), "--out", "again", "--quiet"]) == 0
    assert (place / "again" / "model.mira").read_bytes() == (folder / "model.mira").read_bytes()
    capsys.readouterr()
    assert main.run(["auto", "recipe.toml", "--quiet", "--time", "20 s"]) == 0
    assert "Best: " in capsys.readouterr().out
    assert main.run(["runs", "--json"]) == 0


def test_a_missed_goal_has_its_own_exit_status(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--metric", "100%", "--parameters", "3.5%", "--latency", "any", "--time", "1 s", "--quiet"]
    assert main.run(["auto", "recipe.toml", *arguments]) == 4
    out, told = capsys.readouterr()
    assert "Best: " in out
    assert "E301" in told
    assert "more --time" in told


def test_a_limit_out_of_reach_says_what_is_possible(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["auto", "recipe.toml", "--size", "40 B", "--latency", "any", "--quiet"]) == 2
    told = capsys.readouterr().err
    assert "E114" in told
    assert "the least that is expected of each alone is size" in told
