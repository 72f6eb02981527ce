"""The command line as a user types it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from mirabelle import pack
from mirabelle.cli import main
from mirabelle.cli.display import duration

MIRABELLE = [str(Path(sys.executable).parent / "mirabelle")]
RECIPE = """
schema = 1
[model]
from = "mirabelle.sources.zoo:digits_mlp"
[task]
data = "digits"
[baseline]
train = { epochs = 3, batch_size = 64, lr = 1e-2 }
[goal]
SIZE
[[step]]
use = "quantize.Static"
"""


def call(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """The installed command, in a process of its own."""
    return subprocess.run([*MIRABELLE, *arguments], capture_output=True, text=True, timeout=120, check=False, **options)


def typed(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The same command in this process, which has its imports behind it."""
    words, out, told = [str(argument) for argument in arguments], io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(told):
        status = main.run(words)
    return subprocess.CompletedProcess(words, status, out.getvalue(), told.getvalue())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "recipe.toml").write_text(RECIPE.replace("SIZE", 'size = "90%"'))
    return folder, typed("run", folder / "recipe.toml", "--out", folder / "run")


def test_help_lists_the_commands() -> None:
    done = call("--help")
    assert done.returncode == 0
    for command in ("demo", "run", "inspect", "unpack"):
        assert command in done.stdout
    assert call("--version").stdout.startswith("mirabelle, version ")


def test_a_run_prints_results_on_standard_output_and_progress_on_standard_error(ran) -> None:
    folder, done = ran
    assert done.returncode == 0, done.stderr
    assert "before" in done.stdout
    assert "gates: torch_onnx passed" in done.stdout
    assert str(folder / "run" / "report.html") in done.stdout.replace("\n", "")
    assert "epoch 3/3" in done.stderr
    assert "left" in done.stderr
    assert "epoch" not in done.stdout
    for stream in (done.stdout, done.stderr):
        assert "\x1b" not in stream
        assert "\r" not in stream


def test_json_is_the_report_and_nothing_else(ran) -> None:
    """Of the installed command: what libraries print on their own would be seen, too."""
    folder, _ = ran
    done = call("run", str(folder / "recipe.toml"), "--out", str(folder / "run"), "--json", "--quiet")
    assert done.returncode == 0
    assert json.loads(done.stdout) == json.loads((folder / "run" / "report.json").read_text())
    assert done.stderr == ""


def test_a_resolved_recipe_runs_again_to_the_same_file(ran) -> None:
    folder, _ = ran
    done = typed("run", folder / "run" / "recipe.toml", "--out", folder / "again", "--quiet")
    assert done.returncode == 0, done.stderr
    assert (folder / "again" / "model.mira").read_bytes() == (folder / "run" / "model.mira").read_bytes()


def test_another_seed_is_another_run_and_its_recipe_gives_it_again(ran) -> None:
    folder, _ = ran
    for recipe, out, seed in (("recipe.toml", "seeded", ("--seed", "1")), ("seeded/recipe.toml", "seeded-again", ())):
        assert typed("run", folder / recipe, "--out", folder / out, *seed, "--quiet").returncode == 0
    one, again, other = ((folder / name / "model.mira").read_bytes() for name in ("seeded", "seeded-again", "run"))
    assert one == again
    assert one != other


def test_mistakes_are_one_line_and_a_remedy_with_exit_status_2(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("SIZE", 'sise = "1 B"'))
    (tmp_path / "notes.mira").write_text("not packed")
    for arguments in (
        ("run", tmp_path / "recipe.toml"),
        ("run", tmp_path / "absent.toml"),
        ("unpack", tmp_path / "notes.mira"),
        ("unpack", tmp_path / "absent.mira"),
        ("inspect", "mirabelle.sources.zoo:lenet55"),
        ("inspect", "mirabelle.sources.zoo:lenet5", "--input", "1;28"),
    ):
        done = typed(*arguments)
        assert done.returncode == 2, arguments
        lines = done.stderr.splitlines()
        assert lines[0].startswith("error[E")
        assert lines[-1].startswith("help: ")
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


def test_an_unknown_command_is_exit_status_2() -> None:
    done = call("runn")
    assert done.returncode == 2
    assert 'no command "runn"' in done.stderr


def test_the_bare_command_is_an_invitation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([]) == 0
    out, told = capsys.readouterr()
    assert "Begin here:" in out
    assert told == ""


def test_inspect_shows_the_layers_of_a_factory_a_file_and_a_run(ran) -> None:
    folder, _ = ran
    done = typed("inspect", "mirabelle.sources.zoo:lenet5", "--input", "1x28x28")
    assert done.returncode == 0
    assert "431,080" in done.stdout
    assert "2,293,000" in done.stdout
    for model in (folder / "run", folder / "run" / "model.onnx", folder / "run" / "model.mira"):
        layers = json.loads(typed("inspect", model, "--json").stdout)
        assert [(layer["name"], layer["shape"], layer["macs"]) for layer in layers] == [
            ("fc1", [16, 64], 1024),
            ("fc2", [10, 16], 160),
        ]
        assert all(0 <= layer["sparsity"] < 1 for layer in layers)


def test_unpack_gives_the_onnx_file_back(ran, tmp_path: Path) -> None:
    folder, _ = ran
    done = typed("unpack", folder / "run" / "model.mira", "--out", tmp_path / "m.onnx", "--json")
    assert done.returncode == 0
    onnx = (tmp_path / "m.onnx").read_bytes()
    assert onnx == (folder / "run" / "model.onnx").read_bytes()
    assert json.loads(done.stdout) == {
        "onnx": str(tmp_path / "m.onnx"),
        "onnx_bytes": len(onnx),
        "packed_bytes": len(pack(onnx)),
    }


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_interruption_is_told_and_the_same_command_goes_on(tmp_path: Path, number: int, status: int) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.replace("SIZE", "").replace("epochs = 3", "epochs = 4000"))
    command = [*MIRABELLE, "run", str(recipe), "--out", str(tmp_path / "run"), "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    events = tmp_path / "run" / "events.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (events.is_file() and '"epoch": 30,' in events.read_text()):
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert "run the same command again" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_the_demo_runs_offline_and_keeps_its_promises(tmp_path: Path) -> None:
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = call("demo", "--out", str(tmp_path / "demo"), "--json", env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["goal"]["met"]
    assert not (report["comparison"]["different"] and report["end"]["metric"]["value"] < report["start"]["metric"]["value"])
    assert report["start"]["size_bytes"]["torch"] >= 15 * report["end"]["size_bytes"]["packed"]


def test_durations_are_readable() -> None:
    assert [duration(seconds) for seconds in (0.4, 7, 65, 3723)] == ["0:00", "0:07", "1:05", "1:02:03"]
