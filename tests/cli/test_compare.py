"""`mirabelle compare` as a user types it: every candidate at every budget, resumable, with a verdict."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mirabelle.cli import main
from mirabelle.errors import UserError, UserErrors

NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))
"""
COMPARISON = """
schema = 1
[model]
from = "./net.py:net"
[task]
data = "points.npz"
[baseline]
train = { epochs = 3, batch_size = 32, lr = 1e-2, precision = "float32" }
[compare]
techniques = ["distill", "share"]
size = ["15%"]
train = { epochs = 2, batch_size = 32, lr = 1e-2, precision = "float32" }
seeds = 2
[[candidate]]
name = "mine"
vary = { setting = "step.1.sparsity", least = 0.0, most = 0.98 }
[[candidate.step]]
use = "prune.Weights"
sparsity = 0.5
scope = "global"
train = { epochs = 2, batch_size = 32, precision = "float32" }
"""


@pytest.fixture
def place(points: Path) -> Path:
    (points / "net.py").write_text(NET)
    (points / "which.toml").write_text(COMPARISON)
    return points


def compared(*arguments: str) -> int:
    status: int = main.mirabelle(args=["compare", *arguments], standalone_mode=False)
    return status


def test_every_candidate_at_every_budget(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared("which.toml", "--json", "--quiet") == 0
    data = json.loads(capsys.readouterr().out)
    (limit,) = data["limits"]
    assert (limit["kind"], limit["asked"], limit["judge"]) == ("size", "15%", "validation")
    assert {row["name"] for row in limit["candidates"]} == {"distill", "share", "mine"}
    metrics = [row["metric"][0] for row in limit["candidates"]]
    assert metrics == sorted(metrics, reverse=True)
    assert all(row["size_bytes"] <= limit["value"] or row["over"] for row in limit["candidates"])
    assert all(0 <= low <= mean <= high <= 1 for mean, low, high in (row["metric"] for row in limit["candidates"]))
    assert limit["leaders"][0] == next(row["name"] for row in limit["candidates"] if not row["over"])
    assert data["verdict"].startswith("At 15% of the bytes")
    folder = place / "runs" / "which"
    assert json.loads((folder / "validation.json").read_text())["limits"] == data["limits"]
    page = (folder / "validation.html").read_text()
    assert data["verdict"] in page
    assert page.count("<circle") == len(limit["candidates"])
    assert "<script" not in page

    made = {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")}
    assert len(made) >= 1 + 2 * len(limit["candidates"])
    assert compared("which.toml", "--quiet") == 0
    out = capsys.readouterr().out
    assert out.startswith(data["verdict"])
    assert "## At most 15% of the bytes" in out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")} == made, "nothing is repeated"

    assert main.mirabelle(args=["runs", "--json"], standalone_mode=False) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {run["state"] for run in listed} == {"compared", "trained"}


@pytest.mark.parametrize(
    ("before", "after", "code", "words"),
    [
        ('size = ["15%"]', "", "E111", "needs a budget"),
        ('size = ["15%"]', 'size = ["many"]', "E113", "which.toml:11"),
        ('techniques = ["distill", "share"]', "techniques = []", "E111", "two candidates"),
        ('name = "mine"', 'name = "share"', "E111", "its own name"),
        ('name = "mine"', 'name = "../mine"', "E110", "a folder of this name"),
        ('name = "mine"', 'name = "a|b"', "E110", "cannot be called"),
        ('name = "mine"', 'name = "teacher"', "E110", "cannot be called"),
        ('"share"]', '"share", "distill "]', "E111", "the same twice"),
        ('size = ["15%"]', 'size = ["15%", "15 %"]', "E111", "the same budget twice"),
        ("step.1.sparsity", "step.1.sparsity.x", "E111", "no setting of a step"),
        ('train = { epochs = 2, batch_size = 32, precision = "float32" }', "", "E111", "has no training"),
        ("step.1.sparsity", "step.2.sparsity", "E111", "no setting of a step"),
        ("least = 0.0", "least = -1.0", "E110", "sparsity"),
        ('use = "prune.Weights"', 'use = "prune.Weighs"', "E106", "did you mean"),
        ("seeds = 2", "seeds = 0", "E110", "seeds"),
        ("[compare]", "[comparison]", "E102", "did you mean"),
        ('"share"]', '"shares"]', "E106", 'no technique is called "shares"'),
        ('size = ["15%"]', 'size = ["10 B"]', "E114", "no candidate reaches 10 B"),
    ],
)
def test_mistakes(before: str, after: str, code: str, words: str, place: Path) -> None:
    assert before in COMPARISON
    (place / "which.toml").write_text(COMPARISON.replace(before, after))
    with pytest.raises((UserError, UserErrors)) as caught:
        compared("which.toml", "--quiet")
    assert code in {one.code for one in caught.value.errors}
    assert re.search(re.escape(words), str(caught.value))
