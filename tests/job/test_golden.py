"""A run of an earlier version: its folder is verified, gone on with and read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mirabelle.cli import main
from mirabelle.report import read_report
from mirabelle.run import files

GOLDEN = Path(__file__).parent / "golden" / "digits"
RECIPE = """
schema = 1
seed = 3
[model]
from = "mirabelle.sources.zoo:digits_mlp"
arguments = { hidden = 12 }
[task]
data = "digits"
[baseline]
train = { epochs = 4, lr = 1e-2 }
[goal]
size = "80%"
[[step]]
use = "prune.Weights"
sparsity = 0.5
train = { epochs = 1, lr = 1e-3, objective = [{ term = "TaskLoss" }, { term = "L1", weight = 1e-5 }] }
[[step]]
use = "prune.Channels"
sparsity = 0.25
[[step]]
use = "quantize.Static"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(GOLDEN, tmp_path / "run")


def test_a_run_of_schema_1_is_verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.read_json(folder / "architecture.json")["schema"] == 1
    assert main.run(["verify", str(folder)]) == 0
    assert capsys.readouterr().out.count("passed") == 4


def test_the_same_recipe_goes_on_with_a_run_of_earlier_names_and_the_weights_stay(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    assert main.run(["run", str(tmp_path / "recipe.toml"), "--out", str(folder), "--quiet"]) == 0
    assert (folder / "model.safetensors").read_bytes() == (GOLDEN / "model.safetensors").read_bytes()
    assert read_report(folder).end.size_bytes.packed == read_report(GOLDEN).end.size_bytes.packed


def test_another_recipe_is_another_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("sparsity = 0.25", 'sparsity = 0.25\ninclude = ["fc1*"]'))
    assert main.run(["run", str(tmp_path / "recipe.toml"), "--out", str(folder), "--quiet"]) == 2
    assert "step.2.include" in capsys.readouterr().err


def test_a_damaged_step_without_digests_is_refused_and_nothing_good_is_overwritten(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    arguments = ["run", str(tmp_path / "recipe.toml"), "--out", str(folder), "--quiet"]
    assert main.run(arguments) == 0
    assert "steps/1-prune.weights was written by an earlier version, without digests" in (folder / "events.jsonl").read_text()
    last = folder / "steps" / "3-quantize.static" / "model.safetensors"
    data = bytearray(last.read_bytes())
    data[-9] ^= 1
    last.write_bytes(data)
    whole = {path.name: path.read_bytes() for path in folder.glob("model.*")}
    capsys.readouterr()
    assert main.run(arguments) == 2
    assert "differ, and an earlier version wrote no digests" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.glob("model.*")} == whole
