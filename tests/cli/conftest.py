"""Finished runs that tests of several commands look at."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mirabelle import Task, Training, compress, quantize
from mirabelle.cli.main import mirabelle

RECIPE = """
schema = 1
[model]
from = "mirabelle.sources.zoo:digits_mlp"
arguments = { hidden = 24 }
[task]
data = "digits"
[baseline]
train = { epochs = 4, batch_size = 64, lr = 1e-2 }
[[step]]
use = "distill.Student"
model = "mirabelle.sources.zoo:digits_mlp"
train = { epochs = 4, batch_size = 64, lr = 1e-2 }
[[step]]
use = "quantize.Static"
"""


@pytest.fixture
def call() -> Callable[..., int]:
    """Call the command line in this process; gives its status, raises its errors."""

    def call(*arguments: Any) -> int:
        outcome = mirabelle(args=[str(argument) for argument in arguments], standalone_mode=False)
        return outcome if isinstance(outcome, int) else 0

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that replaced its model and quantized it; to be left as it is."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "recipe.toml").write_text(RECIPE)
    mirabelle(args=["run", str(folder / "recipe.toml"), "--out", str(folder / "run"), "--quiet"], standalone_mode=False)
    return folder / "run"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run that has ended and missed its goal; tests change copies of it."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(120, 8), torch.arange(120) % 3
    task = Task(train=(inputs, targets), test=(inputs, targets), name="noise")
    place, train = tmp_path_factory.mktemp("original") / "run", Training(epochs=3, batch_size=32, lr=0.02)
    return compress(nn.Linear(8, 3), task, [quantize.Static()], {"size": "1 B"}, out=place, baseline=train).folder


@pytest.fixture(scope="session")
def points_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file points.npz: three classes of points in eight dimensions."""
    rng = np.random.default_rng(0)
    centers, targets = 2 * rng.standard_normal((3, 8)), np.arange(900) % 3
    inputs = (centers[targets] + rng.standard_normal((900, 8))).astype(np.float32)
    file = tmp_path_factory.mktemp("points") / "points.npz"
    np.savez(file, inputs=inputs, targets=targets)
    return file


@pytest.fixture
def points(points_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with that file; it is the working folder."""
    shutil.copy(points_file, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
