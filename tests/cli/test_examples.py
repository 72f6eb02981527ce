"""The example that each command's --help gives, typed as it stands; and what all commands have in common."""

from __future__ import annotations

import importlib
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
from PIL import Image

from mirabelle.cli import main
from word_tokenizer import save_word_tokenizer

MIRABELLE = str(Path(sys.executable).parent / "mirabelle")
NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES))
"""


def example_of(command: str) -> str:
    """The first line under "Example:" or "Examples:" in the help of a command."""
    text = importlib.import_module(f"mirabelle.cli.{command}").command.help or ""
    (example,) = re.findall(r"Examples?:\n +(mirabelle .+)", text)
    return example


@pytest.fixture(scope="session")
def finished_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the demo's own example was run, its result also under runs/digits."""
    folder = tmp_path_factory.mktemp("demo")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main.run(shlex.split(example_of("demo"))[1:]) == 0
    finally:
        os.chdir(before)
    (folder / "runs" / "demo").rename(folder / "runs" / "digits")
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (8, 8), dtype=np.uint8), "L").save(folder / "digit.png")
    for name, low in {"bright": 128, "dark": 0}.items():
        (folder / "photos" / name).mkdir(parents=True)
        for k in range(40):
            pixels = generator.integers(low, low + 127, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels, "L").save(folder / "photos" / name / f"{k}.png")
    return folder


COMPARISON = """
schema = 1
[model]
from = "./net.py:net"
[task]
data = "./photos"
[compare]
techniques = ["prune", "share"]
size = ["20%"]
seeds = 1
train = { epochs = 1, batch_size = 16 }
"""
FIRST = """
schema = 1
model = { from = "./net.py:net" }
task = { data = "./photos" }
baseline = { train = { epochs = 6, batch_size = 8, lr = 3e-3 } }
step = [{ use = "quantize.Static" }]
"""


@pytest.fixture
def place(finished_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, and of all that the examples speak of; it is the working folder."""
    folder = Path(shutil.copytree(finished_demo, tmp_path / "place"))
    (folder / "net.py").write_text(NET.replace("CLASSES", "2"))
    monkeypatch.chdir(folder)
    return folder


def typed(line: str, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """What a line prints on standard output; `> file` is heeded, and the status must be 0."""
    line, _, target = line.partition(" > ")
    status = main.run([*shlex.split(line)[1:], *more])
    out, told = capsys.readouterr()
    assert status == 0, told
    assert "\x1b" not in out + told
    assert "\r" not in out + told
    if target:
        Path(target.strip()).write_text(out)
    return out


def prepared(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The example of a command, with the recipe that it takes made by the example of `init`."""
    if command in ("run", "check"):
        typed(example_of("init").replace(" > ", " --no-look > "), capsys)
    if command == "compare":
        Path("comparison.toml").write_text(COMPARISON)
    if command == "auto":
        Path("first.toml").write_text(FIRST)
        assert main.run(["run", "first.toml", "--quiet"]) == 0
        shutil.copy("runs/first/steps/0-baseline/model.safetensors", "net.safetensors")
        capsys.readouterr()
    if command == "large":
        words = [f"word{k}" for k in range(40)]
        config = transformers.LlamaConfig(
            vocab_size=save_word_tokenizer(Path("llama"), words), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2,
        )  # fmt: skip
        transformers.LlamaForCausalLM(config).save_pretrained("llama")
        Path("corpus.txt").write_text(" ".join(words * 20))
        capsys.readouterr()  # transformers draws bars
        return example_of(command) + " --samples 4 --onnx"
    return example_of(command)


LEFT = {"export": "net.onnx", "pack": "digits.mira", "unpack": "digits.onnx", "report": "digits.html", "init": "recipe.toml"}
LEFT["compare"] = "runs/which/validation.html"
LEFT["auto"] = "runs/auto/model.mira"
LEFT["large"] = "llama-small/model.onnx.data"


@pytest.mark.parametrize("command", [command for command in main.COMMANDS if command != "demo"])
def test_the_example_in_the_help_of_a_command_runs_and_again_as_json(
    command: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = prepared(command, capsys)
    out = typed(line, capsys)
    assert out.strip()
    if command in LEFT:
        assert (place / LEFT[command]).stat().st_size > 100
    if command == "run":
        assert json.loads((place / "runs" / "mine" / "report.json").read_text())["recipe"]["step"][0]["sparsity"] == 0.7
    if command == "check":
        assert "2 layers are quantized: 0, 3" in out
        assert not (place / "runs" / "recipe").exists()
    assert json.loads(typed(line.partition(" > ")[0], capsys, "--json")), "one document and nothing else"


def test_every_command_is_quiet_and_verbose_if_asked_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    for command in main.COMMANDS:
        assert main.run([command, "--help"]) == 0
        out = capsys.readouterr().out
        for option in ("--json", "--quiet", "-v, --verbose"):
            assert option in out, command


def test_the_recipe_that_init_prints_runs_as_it_stands(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed(example_of("init"), capsys)
    status = main.run(["run", "recipe.toml", "--quiet"])
    capsys.readouterr()
    assert status == 0
    assert (place / "runs" / "recipe" / "model.mira").is_file()
    main.run(["predict", "runs/recipe", "photos/dark/3.png", "--json"])
    (prediction,) = json.loads(capsys.readouterr().out)
    assert prediction["label"] == "dark"


def test_the_schema_that_init_prints_holds_for_the_recipe_that_it_prints(place: Path, capsys) -> None:
    import tomllib

    import jsonschema

    typed(example_of("init"), capsys)
    assert main.run(["init", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.validate(tomllib.loads(Path("recipe.toml").read_text()), schema)


def test_a_shell_can_complete_commands_and_options() -> None:
    for words, expected in {"mirabelle in": {"init", "inspect"}, "mirabelle run --da": {"--data-dir"}}.items():
        environment = {
            **os.environ,
            "_MIRABELLE_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        done = subprocess.run([MIRABELLE], env=environment, capture_output=True, text=True, check=True, timeout=60)
        assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected


@pytest.mark.parametrize("no_color", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_terminal_gets_a_bar_and_no_colour_where_none_is_wanted(place: Path, no_color: bool) -> None:
    """A real terminal: the run's standard error is a pseudo-terminal."""
    recipe = """
schema = 1
[model]
from = "mirabelle.sources.zoo:digits_mlp"
[task]
data = "digits"
[baseline]
train = { epochs = 400, batch_size = 8 }
[[step]]
use = "quantize.Static"
"""
    Path("terminal.toml").write_text(recipe)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"} | ({"NO_COLOR": "1"} if no_color else {})
    command = [MIRABELLE, "run", "terminal.toml", "--out", "runs/terminal"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    try:
        while b"left" not in seen or b"%" not in seen:
            seen += os.read(ours, 4096)
    finally:
        process.kill()
        process.wait()
    text = seen.decode(errors="replace")
    assert "epoch" in text
    colours = re.findall(r"\x1b\[[0-9;]*m", text)
    painted = [colour for colour in colours if re.search(r"\[(?:.*;)?(?:3[0-8]|9[0-7])", colour)]
    assert bool(painted) == (not no_color)
