"""A finished run, whose copies are made hostile, and a mark that code would leave."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirabelle.cli import main
from mirabelle.run import files

RECIPE = """
schema = 1
[model]
from = "mirabelle.sources.zoo:digits_mlp"
[task]
data = "digits"
[baseline]
train = { epochs = 1, lr = 1e-2 }
[[step]]
use = "distill.Student"
model = "mirabelle.sources.zoo:digits_mlp"
train = { epochs = 1, lr = 1e-2 }
[[step]]
use = "prune.Weights"
sparsity = 0.5
score = "Magnitude"
"""
PAYLOAD = """
from pathlib import Path

MARK = Path({mark!r})
MARK.write_text("imported")


def net(*given, **settings):
    MARK.write_text("called")
    from mirabelle.sources.zoo import digits_mlp

    return digits_mlp()


def metric(outputs, targets):
    return (outputs.argmax(1) == targets).float()


task = loss = net


class Halve:
    stage = "thin"


class Zero:
    pass


Largest = Lzma = LowRank = Zero
"""


@dataclass(frozen=True)
class Hostile:
    """The folder of a run to make hostile, and the mark that code in it would leave."""

    folder: Path
    mark: Path

    def rewrite(self, *changes: tuple[str, str]) -> None:
        """Change texts of recipe.toml, and give it the digest of its new content, as whoever forges it would."""
        path = self.folder / "recipe.toml"
        text = path.read_text("utf-8")
        for before, after in changes:
            assert before in text, before
            text = text.replace(before, after.replace("MARK", str(self.mark)), 1)
        line = next(line for line in text.splitlines() if "digest of this file" in line)
        files.write_text(path, text.replace(line, f"# {files.TEXT_DIGEST}"))


@pytest.fixture(scope="session")
def innocent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, to be left as it is."""
    folder = tmp_path_factory.mktemp("innocent")
    (folder / "recipe.toml").write_text(RECIPE)
    assert main.run(["run", str(folder / "recipe.toml"), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


@pytest.fixture
def hostile(innocent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hostile:
    """A copy of the run with a payload in it, in which the user stands."""
    folder, mark = Path(shutil.copytree(innocent, tmp_path / "run")), tmp_path / "mark"
    (folder / "payload.py").write_text(PAYLOAD.format(mark=str(mark)))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Hostile(folder, mark)


@pytest.fixture
def status(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call the command line in this process: (exit status, standard output, standard error)."""

    def status(*arguments: object) -> tuple[int, str, str]:
        code = main.run([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return status
