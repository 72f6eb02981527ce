"""Files of a run that are damaged, swapped or missing: made again from what is whole, or refused; never used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mirabelle import Result, Task, Training, compress, load, prune, quantize
from mirabelle.artifact.reading import onnx_of
from mirabelle.cli import main
from mirabelle.errors import UserError
from mirabelle.run import files
from mirabelle.run.run import Run
from mirabelle.training.checkpoint import Checkpoint
from mirabelle.training.teacher import read_cache

TRAIN = Training(epochs=2, batch_size=50, lr=0.02, precision="float32")
STEPS = [prune.Weights(sparsity=0.5, train=TRAIN), prune.Weights(sparsity=0.8, train=TRAIN), quantize.Dynamic()]
SHIPPED = ("model.onnx", "model.mira", "model.safetensors", "architecture.json")


def flip(path: Path, at: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3 if at is None else at] ^= 1
    path.write_bytes(data)


def bits(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in SHIPPED}


def again(mlp: nn.Module, blobs: Task, folder: Path) -> tuple[Result, list[str]]:
    """The same call once more: its result, and what it warned of."""
    told: list[str] = []

    def hear(event: Any) -> None:
        if event["event"] == "warning":
            told.append(event["text"])

    return compress(mlp, blobs, STEPS, out=folder, baseline=TRAIN, callbacks=[hear]), told


@pytest.fixture(scope="module")
def kept() -> list[Path]:
    return []


@pytest.fixture
def ended(mlp: nn.Module, blobs: Task, tmp_path: Path, kept: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended, in a folder that the test may damage."""
    if not kept:
        kept.append(tmp_path_factory.mktemp("ended") / "run")
        again(mlp, blobs, kept[0])
    return shutil.copytree(kept[0], tmp_path / "run")


def as_killed(folder: Path, after: int) -> None:
    """Remove what a run writes after so many of its steps."""
    for path in (*folder.glob("model.*"), *folder.glob("*.json"), *folder.glob("re*.html"), folder / "README.md"):
        if path.name != "environment.json":
            path.unlink()
    for step in (folder / "steps").iterdir():
        if int(step.name[0]) > after:
            shutil.rmtree(step)


@pytest.mark.parametrize("name", ["model.safetensors", "architecture.json", "profile.json"])
def test_a_step_with_a_flipped_bit_is_made_again_from_the_step_before(
    name: str, ended: Path, mlp: nn.Module, blobs: Task
) -> None:
    whole = bits(ended)
    as_killed(ended, after=2)
    flip(ended / "steps" / "1-prune.weights" / name)
    _, told = again(mlp, blobs, ended)
    assert bits(ended) == whole
    assert any(name in text and "made again" in text for text in told), told


def test_a_damaged_step_of_an_ended_run_changes_nothing_that_ships(ended: Path, mlp: nn.Module, blobs: Task) -> None:
    whole, report = bits(ended), (ended / "report.json").read_bytes()
    flip(ended / "steps" / "3-quantize.dynamic" / "model.safetensors")
    again(mlp, blobs, ended)
    assert bits(ended) == whole
    assert (ended / "report.json").read_bytes() == report


@pytest.mark.parametrize("what", ["model.safetensors", ""])
def test_two_steps_that_were_swapped_are_noticed(what: str, ended: Path, mlp: nn.Module, blobs: Task) -> None:
    whole = bits(ended)
    as_killed(ended, after=2)
    one, other = (ended / "steps" / name / what for name in ("1-prune.weights", "2-prune.weights"))
    one.rename(ended / "third")
    other.rename(one)
    (ended / "third").rename(other)
    _, told = again(mlp, blobs, ended)
    assert bits(ended) == whole
    assert any("made again" in text for text in told)


@pytest.mark.parametrize("name", [*SHIPPED, "report.json"])
def test_a_damaged_file_that_ships_is_written_again(name: str, ended: Path, mlp: nn.Module, blobs: Task) -> None:
    whole = bits(ended)
    flip(ended / name)
    _, told = again(mlp, blobs, ended)
    assert bits(ended) == whole
    assert any("written again" in text for text in told)
    assert again(mlp, blobs, ended)[1] == []


def test_the_report_of_another_run_is_not_believed(ended: Path, mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    other = compress(mlp, blobs, [quantize.Dynamic()], out=tmp_path / "other")
    shutil.copy(other.folder / "report.json", ended / "report.json")
    result, told = again(mlp, blobs, ended)
    assert any("another run" in text for text in told)
    assert json.loads((ended / "report.json").read_text())["recipe"]["step"][0]["use"] == "prune.Weights"
    assert result.folder == ended


@pytest.mark.parametrize("name", ["model.onnx", "model.mira"])
def test_a_damaged_file_is_not_read_in_the_folder_of_its_run(name: str, ended: Path) -> None:
    onnx_of(ended / name)
    flip(ended / name)
    with pytest.raises(UserError, match=f"E141.*{name}"):
        onnx_of(ended / name)


def test_tensors_of_another_model_are_not_loaded(ended: Path, mlp: nn.Module) -> None:
    shutil.copy(ended / "steps" / "1-prune.weights" / "model.safetensors", ended / "steps" / "2-prune.weights")
    with pytest.raises(UserError, match=r"E141.*was not written together with architecture\.json"):
        load(mlp, ended / "steps" / "2-prune.weights")


def test_a_damaged_recipe_is_refused_in_one_line(
    ended: Path, mlp: nn.Module, blobs: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ended / "recipe.toml"
    path.write_text(path.read_text().replace("threads = ", "threads = 1"))
    with pytest.raises(UserError, match=r"E141.*recipe\.toml is damaged"):
        again(mlp, blobs, ended)
    assert main.run(["verify", str(ended)]) == 2
    assert "recipe.toml is damaged" in capsys.readouterr().err


def test_damaged_lines_of_the_journal_are_left_out_and_told(ended: Path, mlp: nn.Module, blobs: Task) -> None:
    as_killed(ended, after=1)
    path = ended / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if '"epoch"' in line)
    path.write_text("".join([*lines[:at], lines[at].replace('"loss": ', '"loss": 1'), *lines[at + 1 :]]))
    _, told = again(mlp, blobs, ended)
    assert told[0].startswith("1 damaged line")
    epochs = json.loads((ended / "report.json").read_text())["curves"][0]["epochs"]
    assert [one["epoch"] for one in epochs] == [2]


def test_lost_lines_of_the_journal_are_told(ended: Path, mlp: nn.Module, blobs: Task) -> None:
    as_killed(ended, after=1)
    path = ended / "events.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    assert any("has lost lines" in text for text in again(mlp, blobs, ended)[1])


def test_a_damaged_checkpoint_is_dropped(ended: Path, mlp: nn.Module, blobs: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bits(ended)
    as_killed(ended, after=0)
    shutil.rmtree(ended / "steps" / "0-baseline")

    class Killed(BaseException):
        pass

    def kill(event: Any) -> None:
        if event["event"] == "epoch":
            raise Killed

    monkeypatch.setattr(Checkpoint, "due", True)
    with pytest.raises(Killed):
        compress(mlp, blobs, STEPS, out=ended, baseline=TRAIN, callbacks=[kill])
    monkeypatch.undo()
    checkpoint = ended / "steps" / "0-baseline" / "checkpoint.safetensors"
    flip(checkpoint, checkpoint.stat().st_size - 9)
    _, told = again(mlp, blobs, ended)
    assert any("checkpoint.safetensors is damaged" in text and "begins anew" in text for text in told)
    assert bits(ended) == whole


def test_a_damaged_or_exchanged_cache_of_a_teacher_is_computed_again(ended: Path, mlp: nn.Module, blobs: Task) -> None:
    whole = bits(ended)
    as_killed(ended, after=0)
    (cache,) = (ended / "teacher").glob("*.safetensors")
    flip(cache, cache.stat().st_size - 9)
    _, told = again(mlp, blobs, ended)
    assert any(cache.name in text and "computed again" in text for text in told)
    assert bits(ended) == whole

    other = ended / "teacher" / "0000.safetensors"
    shutil.copy(cache, other)
    heard: list[str] = []
    assert read_cache(other, Run(ended / "spare", callbacks=[lambda event: heard.append(event["text"])])) is None
    assert "another teacher" in heard[0]


def test_streamed_rows_carry_the_digest_of_the_same_tensors_written_at_once(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(7, 3), "a": torch.arange(7), "c": torch.randn(7, 2).bfloat16()}
    parts = ({name: tensor[start : start + 3] for name, tensor in tensors.items()} for start in range(0, 7, 3))
    files.write_rows(tmp_path / "rows", parts, 7, {"of": "x"})
    files.write_tensors(tmp_path / "once", tensors, {"of": "x"})
    one, other = (files.read_tensors_and_digest(tmp_path / name) for name in ("rows", "once"))
    assert one[1:] == other[1:]
    assert all(torch.equal(one[0][name], tensors[name]) for name in tensors)
    flip(tmp_path / "rows", (tmp_path / "rows").stat().st_size - 1)
    with pytest.raises(UserError, match="E141"):
        files.read_tensors(tmp_path / "rows")
