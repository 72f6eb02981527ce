"""A step, term, score and codec of a user's own: run, verified, loaded and gone on with."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mirabelle import PackedModel, UserError, load, unpack
from mirabelle.cli import main
from mirabelle.job.reopening import model_of_run
from mirabelle.recipe.file import read_recipe
from mirabelle.run import files
from mirabelle.task.batch import call

MINE = '''
import lzma
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from mirabelle.model import Replacement, copied, replace_module
from mirabelle.objectives import Term
from mirabelle.records import record
from mirabelle.scores import Score
from mirabelle.step import Preview


class LowRank(Replacement):
    def __init__(self, dense, rank):
        super().__init__({"rank": rank})
        self.v = nn.Linear(dense.in_features, rank, bias=False)
        self.u = nn.Linear(rank, dense.out_features)

    def forward(self, x):
        return self.u(self.v(x))


@record
class Factorize:
    """y = U V x + b by the singular values.

    Args:
        rank: of the product.
    """

    stage: ClassVar[str] = "thin"
    rank: int = 4

    def __call__(self, model, task, run):
        model = copied(model)
        dense, low = model[1], LowRank(model[1], self.rank)
        with torch.no_grad():
            u, s, v = torch.linalg.svd(dense.weight)
            low.u.weight.copy_(u[:, : self.rank] * s[: self.rank])
            low.v.weight.copy_(v[: self.rank])
            low.u.bias.copy_(dense.bias)
        return replace_module(model, "1", low)

    def preview(self, model, task, run):
        return Preview(self(model, task, run), ("factorizes one layer",))


@record
class Largest(Score):
    def __call__(self, tensor, evidence):
        return tensor.abs()


class Nothing(nn.Module):
    def forward(self, forward):
        return forward.outputs.sum() * 0.0


@record
class Zero(Term):
    def bind(self, model, task, example):
        return Nothing()


class Lzma:
    dtypes = ("float32", "int8", "int32")

    def encode(self, symbols):
        return lzma.compress(symbols.tobytes(), lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9}])

    def decode(self, data, shape, dtype):
        try:
            whole = lzma.decompress(data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9}])
        except lzma.LZMAError as error:
            raise ValueError(str(error)) from error
        return np.frombuffer(whole, dtype).reshape(shape)


class Harmonic:
    """A codec that takes no bytes, for 1, 1/2, 1/3, ... alone: it wins wherever it may."""

    dtypes = ("float32", "int8", "int32")

    def encode(self, symbols):
        return b"" if np.array_equal(symbols.ravel(), harmonic(symbols.size)) else bytes(symbols.nbytes + 9)

    def decode(self, data, shape, dtype):
        if data:
            raise ValueError("not these numbers")
        return harmonic(np.prod(shape)).astype(dtype).reshape(shape)


def harmonic(size):
    return np.float32(1) / np.arange(1, size + 1, dtype=np.float32)


class Shift(nn.Flatten):
    """Flattens and adds fixed numbers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("fixed", torch.from_numpy(harmonic(64)))

    def forward(self, inputs):
        return super().forward(inputs) + self.fixed


def net():
    torch.manual_seed(0)
    model = nn.Sequential(Shift(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10), nn.Linear(10, 10))
    return model
'''
RECIPE = """
schema = 1
[model]
from = "./mine.py:net"
[task]
data = "digits"
[baseline]
train = { epochs = 1, lr = 1e-2, objective = [{ term = "TaskLoss" }, { term = "./mine.py:Zero", weight = 0.5 }] }
[[step]]
use = "./mine.py:Factorize"
rank = 8
[[step]]
use = "prune.Channels"
sparsity = 0.25
score = "./mine.py:Largest"
[[step]]
use = "prune.Weights"
sparsity = 0.5
score = { use = "./mine.py:Largest" }
[artifact]
codecs = ["./mine.py:Lzma", "./mine.py:Harmonic"]
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(MINE)
    (folder / "recipe.toml").write_text(RECIPE)
    assert main.run(["run", str(folder / "recipe.toml"), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder


def test_a_run_with_members_of_a_users_own_is_verified_and_gone_on_with(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = files.read_json(finished / "run" / "architecture.json")
    assert [edit.get("use", edit["edit"]) for edit in record["edits"]] == ["mine.py:LowRank", "model.Cut"]
    assert (finished / "run" / "steps" / "1-factorize").is_dir()
    before = (finished / "run" / "model.safetensors").read_bytes()
    assert main.run(["run", str(finished / "recipe.toml"), "--out", str(finished / "run"), "--quiet"]) == 0
    assert (finished / "run" / "model.safetensors").read_bytes() == before
    task = read_recipe(finished / "run" / "recipe.toml").build_task(None)
    assert call(model_of_run(finished / "run", trust=True), task.test.first(3).inputs).shape == (3, 10)


def test_a_folder_that_is_trusted_brings_its_classes(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = sys.modules["mirabelle_user_mine"]
    monkeypatch.delitem(sys.modules, "mirabelle_user_mine")
    folder = shutil.copytree(finished / "run", tmp_path / "run")
    with pytest.raises(UserError, match="E106"):
        load(mine.net, folder)
    with pytest.raises(UserError, match="E120"):
        load(mine.net, folder, trust=True)
    shutil.copy(finished / "mine.py", folder)
    assert type(load(mine.net, folder, trust=True)[1]).__qualname__ == "LowRank"


ELSEWHERE = """
import sys
from mirabelle.cli import main

out = sys.argv[1]
print("status", main.run(["unpack", "run/model.mira", "--out", out]))
print("status", main.run(["unpack", "run/model.mira", "--out", out, "--codec", "./mine.py:Lzma"]))
print("status", main.run(["verify", "run"]))
print("status", main.run(["verify", "run", "--trust"]))
"""


def test_another_process_reads_what_is_the_users_own_only_where_the_user_names_it(finished: Path, tmp_path: Path) -> None:
    packed = finished / "run" / "model.mira"
    onnx = (finished / "run" / "model.onnx").read_bytes()
    assert any(entry.name.startswith("mine.py:Harmonic") for entry in PackedModel(packed.read_bytes()).head.entries)
    assert unpack(packed.read_bytes()) == onnx  # the fixture's recipe has imported it here
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "out.onnx")]
    done = subprocess.run(command, cwd=finished, capture_output=True, text=True, check=False)
    assert re.findall(r"status (\d)", done.stdout) == ["2", "0", "0", "0"], done.stderr
    assert done.stderr.count("E106") == 1
    assert done.stdout.count("passed") == 4 + 5
    assert "run names " in done.stdout
    assert "mine.py:net, which is code or an address and is not followed; give --trust" in done.stdout
    assert (tmp_path / "out.onnx").read_bytes() == onnx


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("Factorize", "Factorise"), r'E120.*has no class "Factorise".*did you mean "Factorize"'),
        (("./mine.py:Factorize", "./mine.py:net"), 'E106.*mine.py:net" is not a step'),
        (("./mine.py:Factorize", "./other.py:Factorize"), "E120.*no Python file"),
        (("rank = 8", "rang = 8"), "E102.*unknown key.*rang"),
        (("./mine.py:Zero", "./mine.py:Largest"), "E106.*is not a term"),
        (("./mine.py:Lzma", "./mine.py:Zero"), "E106.*is not a codec"),
    ],
)
def test_a_members_name_that_leads_nowhere_is_shown_at_its_line(finished: Path, change: tuple[str, str], words: str) -> None:
    (finished / "wrong.toml").write_text(RECIPE.replace(*change))
    with pytest.raises(UserError) as caught:
        read_recipe(finished / "wrong.toml")
    text = str(caught.value)
    assert re.search(words, text, re.DOTALL), text
    assert "wrong.toml:" in text
