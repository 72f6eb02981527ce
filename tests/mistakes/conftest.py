"""A place with a recipe, a model and data, in which one thing at a time is wrong."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mirabelle.artifact import pack
from mirabelle.cli import main
from mirabelle.runtime.export import export
from mirabelle.sources.zoo import digits_mlp
from mirabelle.task.batch import Batch

RECIPE = """\
schema = 1
seed = 0

[model]
from = "./parts.py:net"

[task]
data = "./parts.py:task"

[baseline]
train = { epochs = 1, batch_size = 32, lr = 0.01 }

[goal]
size = "200%"

[[step]]
use = "prune.Weights"
sparsity = 0.5
schedule = "cubic"
train = { epochs = 1, batch_size = 32 }

[[step]]
use = "quantize.Static"
samples = 50
"""

PARTS = """
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from mirabelle import Task

x = torch.randn(120, 8, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()

def net(width=8):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))

def task():
    return Task(train=(x, y), test=(x, y))

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net()
    def forward(self, inputs):
        return self.inner(inputs), inputs

class Images(nn.Module):
    def forward(self, inputs):
        return inputs.mean((2, 3))

def normed():
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net()
    def forward(self, inputs):
        return self.inner(inputs) if inputs.sum() > 0 else self.inner(-inputs)

def single():
    return nn.Linear(8, 3)

def infinite():
    model = net()
    with torch.no_grad():
        model[2].bias.fill_(float("nan"))
    return model

calls = []

class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net()
    def forward(self, inputs):
        if self.training:
            calls.append(1)
        if len(calls) > 5:
            raise ValueError("only after a while")
        return self.inner(inputs)

def raises():
    raise ZeroDivisionError("a mistake of the user's")

def number():
    return 3

def high_labels():
    return Task(train=(x, y + 1), test=(x, y))

def negative_labels():
    return Task(train=(x, y), test=(x, y - 1))

def empty():
    return Task(train=(x[:0], y[:0]), test=(x, y))

def nan():
    return Task(train=(x.masked_fill(x > 2, float("nan")), y), test=(x, y))

def lengths():
    return Task(train=(x, y[:-1]), test=(x, y))

def float_targets():
    return Task(train=(x, y.float()), test=(x, y.float()))

def of(targets=y, **settings):
    return Task(train=(x, targets), validation=(x, targets), test=(x, targets), **settings)

def two_targets():
    return of((y, y))

def named_targets():
    return of({"color": y, "size": y})

def loader_of_pairs():
    pairs = [(row, (label, label)) for row, label in zip(x, y)]
    return Task(train=DataLoader(pairs), test=(x, y))

def numbers_for_classes():
    return of(metric="r2")

def classes_for_numbers():
    return of(x[:, :3], metric="accuracy")

def spans_for_classes():
    return of(extra_metrics=("exact_match",))

def missing_class():
    return Task(train=(x, y), validation=(x, y), test=(x[y < 2], y[y < 2]), metric="roc_auc")

def constant_number():
    return of(x[:, :3] * torch.tensor([1.0, 0.0, 1.0]), metric="r2")

def many_classes_of_labels():
    return of(x[:, :3].round(), loss="binary_cross_entropy")

def pairs_of_samples():
    return of(x[:, None, :3], loss=lambda outputs, targets: (outputs - targets).square().mean(), metric="r2")

def vector_loss():
    return of(loss=nn.CrossEntropyLoss(reduction="none"))

def likelihood():
    return of(loss=nn.NLLLoss())

def contradiction():
    return of(loss="mse", metric="r2", outputs_are="classes")

def unsaid():
    return of(loss=lambda outputs, targets: outputs.mean(), metric="sensitivity")

def perplexity_of_labels():
    return of(x[:, :3].gt(0), loss="binary_cross_entropy", metric="negative_perplexity")

def rates():
    return nn.Sequential(nn.Linear(8, 3), nn.Softmax(1))

def lone():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))

class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(x, y)

def iterable():
    return Task(train=DataLoader(Stream()), test=(x, y))

def shuffled():
    return Task(train=DataLoader(TensorDataset(x, y), shuffle=True), test=(x, y))

def strings():
    return Task(train=(["a"], [0]), test=(x, y))

def bad_metric():
    return Task(train=(x, y), test=(x, y), metric="acuracy")

def flat_metric():
    return Task(train=(x, y), test=(x, y), metric=lambda outputs, targets: outputs.mean())
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder; it is also the working folder."""
    write_place(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def ended_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The place after `mirabelle run recipe.toml --out out`, with a copy of what the run left, `whole`."""
    folder = tmp_path_factory.mktemp("ended")
    write_place(folder)
    with contextlib.chdir(folder):
        assert main.run(("run", "recipe.toml", "--out", "out", "--quiet")) == 0
    shutil.copytree(folder / "out", folder / "whole")
    return folder


@pytest.fixture
def ended(ended_place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That place as the working folder; the test may damage the run's folder, `out`, and nothing else."""
    shutil.rmtree(ended_place / "out")
    shutil.copytree(ended_place / "whole", ended_place / "out")
    monkeypatch.chdir(ended_place)
    return ended_place


def write_place(folder: Path) -> None:
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "parts.py").write_text(textwrap.dedent(PARTS))
    (folder / "broken.py").write_text("def net(:\n")
    (folder / "exits.py").write_text("import sys\nsys.exit(0)\nnet = dict\n")
    (folder / "explodes.py").write_text("1 / 0\nnet = dict\n")
    (folder / "notes.txt").write_text("dear diary")
    for name, tensors in {
        "missing": {"0.weight": torch.zeros(8, 8), "0.bias": torch.zeros(8), "2.bias": torch.zeros(3)},
        "extra": {**digits_state(), "more": torch.zeros(1)},
        "shapes": {**digits_state(), "2.weight": torch.zeros(3, 9)},
    }.items():
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / "torn.safetensors").write_bytes((folder / "extra.safetensors").read_bytes()[:100])
    torch.save(digits_state(), folder / "weights.pt")
    data = folder / "data" / "mnist"
    data.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (data / f"{name}-ubyte.gz").write_bytes(gzip.compress(b"not an image", mtime=0))


def digits_state() -> dict[str, torch.Tensor]:
    return {
        "0.weight": torch.zeros(8, 8), "0.bias": torch.zeros(8), "2.weight": torch.zeros(3, 8), "2.bias": torch.zeros(3)
    }  # fmt: skip


@pytest.fixture(scope="session")
def onnx_and_packed() -> tuple[bytes, bytes]:
    """A small model as it ships."""
    torch.manual_seed(0)
    onnx = export(digits_mlp(), Batch(torch.zeros(2, 1, 8, 8), torch.zeros(2)))
    return onnx, pack(onnx)
