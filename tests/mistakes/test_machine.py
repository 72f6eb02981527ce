"""What the machine does: a full disk, no memory, a loss that is no number, a folder in use, a crash of ours."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mirabelle.cli import main
from mirabelle.run import files
from mirabelle.run.lock import FolderLock

RUN = ("run", "recipe.toml", "--out", "out", "--quiet")


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, told = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in told
    return told.splitlines()


def test_a_full_disk_is_told_and_the_same_command_goes_on(place: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, iter(range(10_000))

    def full(descriptor: int) -> None:
        if next(calls) == 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    assert main.run(RUN) == 3
    first, remedy = lines_of(capsys)
    assert first.startswith("error[E202]: cannot write out/")
    assert "No space left on device" in first
    assert remedy.startswith("help: free at least 1 MB, then run the same command again")
    assert not list(place.rglob("*.writing"))
    assert main.run(RUN) == 0
    assert json.loads((place / "out" / "report.json").read_text())["goal"]["met"]


def test_a_full_disk_on_standard_output_is_told(place: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "mirabelle.cli.main", "init", "--no-look"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == 3
    assert "error[E202]: cannot write output: No space left on device" in done.stderr


def test_memory_that_runs_out_is_told(place: Path, capsys) -> None:
    """A real allocation that the system refuses."""
    parts, recipe = (place / "parts.py").read_text(), (place / "recipe.toml").read_text()
    (place / "recipe.toml").write_text(recipe.replace("parts.py:net", "parts.py:huge_net"))
    (place / "parts.py").write_text(
        parts
        + "\nclass Huge(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.inner = net()\n"
        + "    def forward(self, inputs):\n        if self.training:\n            torch.empty(1 << 60, dtype=torch.uint8)\n"
        + "        return self.inner(inputs)\n\ndef huge_net():\n    return Huge()\n"
    )
    assert main.run(RUN) == 3
    first, remedy = lines_of(capsys)
    assert first.startswith("error[E203]: memory ran out: ")
    assert "smaller batch_size" in remedy


def test_a_loss_that_is_no_number_is_rolled_back(place: Path, capsys) -> None:
    recipe = (place / "recipe.toml").read_text()
    (place / "recipe.toml").write_text(
        recipe.replace("lr = 0.01 }", 'lr = 1e30, optimizer = "sgd", lr_schedule = "constant" }')
    )
    assert main.run(RUN) == 3
    first, remedy = lines_of(capsys)
    assert first.startswith("error[E201]: training diverged in epoch 1")
    assert "rolled back to the last finite weights, of step 0" in first
    assert "lr = 1e+29" in remedy


def test_a_second_run_in_the_same_folder_is_refused(ended: Path, capsys) -> None:
    lock = FolderLock(ended / "out")
    assert main.run(RUN) == 2
    first, remedy = lines_of(capsys)
    assert first.startswith(f"error[E152]: out is in use by process {os.getpid()} since ")
    assert "another --out" in remedy
    lock.release()
    assert main.run(RUN) == 0


def test_the_lock_of_a_dead_run_is_taken_over(place: Path) -> None:
    lock = "from mirabelle.run.lock import FolderLock\nFolderLock(pathlib.Path('out'))"
    code = f"import os, pathlib\n{lock}\nos.kill(os.getpid(), 9)"
    died = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert died.returncode == -9
    lock = FolderLock(place / "out")
    assert lock.taken_over
    lock.release()
    again = FolderLock(place / "out")
    assert not again.taken_over
    again.release()


def test_a_resumed_run_of_another_recipe_is_refused(ended: Path, capsys) -> None:
    assert main.run((*RUN, "--set", "step.1.sparsity=0.6")) == 2
    first, remedy = lines_of(capsys)
    assert first.startswith("error[E150]: out contains another run: step.1.sparsity: 0.5 there, 0.6 here")
    assert "see out/recipe.toml" in remedy
    (ended / "out" / "recipe.toml").write_text("[")
    assert main.run(RUN) == 2
    assert "cannot be read" in lines_of(capsys)[0]


@pytest.mark.parametrize("damage", [b"", b"{", b"\x00" * 64])
def test_a_damaged_file_of_a_run_does_no_harm(ended: Path, capsys, damage: bytes) -> None:
    shipped = {name: (ended / "out" / name).read_bytes() for name in ("model.onnx", "model.mira", "model.safetensors")}
    damaged = ("steps/0-baseline/model.safetensors", "steps/0-baseline/architecture.json", *shipped)
    for name in damaged:
        (ended / "out" / name).write_bytes(damage)
        assert main.run(RUN) == 0, name
        assert {part: (ended / "out" / part).read_bytes() for part in shipped} == shipped, name
    capsys.readouterr()


def test_an_extra_that_is_not_installed_is_named_with_its_command(place: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    assert main.run((*RUN, "--track", "wandb")) == 2
    first, remedy = lines_of(capsys)
    assert first.startswith('error[E160]: tracking with "wandb" needs')
    assert "pip install 'mirabelle[wandb]'" in remedy
    assert not (place / "out").exists()


def test_a_goal_that_is_missed_is_status_4_with_everything_written(place: Path, capsys) -> None:
    assert main.run((*RUN, "--set", "goal.size=1 B")) == 4
    out, told = capsys.readouterr()
    assert "goal not met" not in out, "it is told once, as the error"
    first, remedy = told.splitlines()
    assert first.startswith("error[E301]: --set goal.size=1 B: goal not met: size is")
    assert "holds the closest model; relax goal.size to" in remedy
    assert (place / "out" / "model.mira").is_file()


def test_a_gate_that_fails_is_status_4(ended: Path, capsys) -> None:
    (ended / "out" / "model.onnx").write_bytes((ended / "out" / "model.onnx").read_bytes()[:-1] + b"\x00")
    assert main.run(("verify", "out")) == 4
    assert "error[E302]: out: gate" in capsys.readouterr().err


def test_a_crash_of_ours_keeps_its_traceback_and_asks_for_a_report(
    place: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.setattr("mirabelle.recipe.file.read_recipe", lambda *_, **__: {}["nothing"])
    assert main.run(RUN) == 1
    first, remedy = lines_of(capsys)
    assert first == "internal error: KeyError: 'nothing'"
    assert "please report" in remedy
    (kept,) = place.glob("mirabelle-crash-*.txt")
    assert str(kept) in remedy
    assert "Traceback (most recent call last)" in kept.read_text()


def test_code_of_the_users_that_fails_late_is_told_as_theirs(place: Path, capsys) -> None:
    recipe = (place / "recipe.toml").read_text()
    (place / "recipe.toml").write_text(recipe.replace("parts.py:net", "parts.py:Late"))
    assert main.run(RUN) == 2
    first, remedy = lines_of(capsys)
    assert first.startswith("error[E120]: ")
    assert "parts.py:" in first
    assert first.endswith("forward raised ValueError: only after a while")
    assert "-v" in remedy


def test_a_demo_begun_anew_leaves_one_alone_that_is_at_work(place: Path, capsys) -> None:
    (place / "demo").mkdir()
    (place / "demo" / "recipe.toml").write_text('from = "mirabelle.sources.zoo:digits_cnn"')
    (place / "demo" / "events.jsonl").write_text("")
    lock = FolderLock(place / "demo")
    assert main.run(("demo", "--out", "demo", "--fresh", "--quiet")) == 2
    assert "error[E152]" in lines_of(capsys)[0]
    assert (place / "demo" / "recipe.toml").is_file()
    lock.release()


def test_a_demo_begun_anew_removes_nobodys_own_folder(place: Path, capsys) -> None:
    assert main.run(("demo", "--out", ".", "--fresh", "--quiet")) == 2
    assert "error[E150]" in lines_of(capsys)[0]
    assert (place / "parts.py").is_file()


def test_with_v_a_mistake_in_code_of_the_users_is_shown_where_it_was_made(place: Path, capsys) -> None:
    recipe = (place / "recipe.toml").read_text()
    (place / "recipe.toml").write_text(recipe.replace("parts.py:net", "parts.py:raises"))
    assert main.run((*RUN, "-v")) == 2
    told = capsys.readouterr().err
    assert told.startswith("error[E120]: recipe.toml:5:8: ")
    assert 'parts.py", line' in told
    assert "ZeroDivisionError: a mistake of the user's" in told
