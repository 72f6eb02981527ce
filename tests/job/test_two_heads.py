"""A classification with two heads: several outputs, the targets of both in one tensor, a loss and a metric of one's own."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import mirabelle
from mirabelle import Task, Training, distill, prune
from mirabelle.cli import main
from mirabelle.errors import UserError

FILE = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from mirabelle import Task


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 24), nn.ReLU())
        self.size, self.sign = nn.Linear(24, 3), nn.Linear(24, 2)

    def forward(self, x):
        seen = self.body(x)
        return self.size(seen), self.sign(seen)


def loss(outputs, targets):
    return sum(cross_entropy(one, targets[:, k]) for k, one in enumerate(outputs))


def both(outputs, targets):
    return torch.stack([one.argmax(1) == targets[:, k] for k, one in enumerate(outputs)]).all(0).float()


def task():
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    y = torch.stack([(x[:, 0] > -0.5).long() + (x[:, 0] > 0.5), (x[:, 1] > 0).long()], 1)
    return Task(train=(x[:300], y[:300]), test=(x[300:], y[300:]), loss=loss, metric=both)
"""
RECIPE = """
schema = 1
[model]
from = "./heads.py:Heads"
[baseline]
train = { epochs = 30, lr = 0.01 }
[task]
data = "./heads.py:task"
[[step]]
use = "prune.Channels"
sparsity = 0.25
train = { epochs = 10, lr = 0.01 }
[[step]]
use = "quantize.Static"
"""


@pytest.fixture
def heads(tmp_path: Path) -> Any:
    (tmp_path / "heads.py").write_text(FILE)
    spec = importlib.util.spec_from_file_location("heads_of_test", tmp_path / "heads.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def correct(outputs: list[np.ndarray], targets: np.ndarray) -> float:
    return float(np.mean([one.argmax(1) == targets[:, k] for k, one in enumerate(outputs)], 0).astype(int).mean())


def test_two_heads_by_recipe_have_the_accuracy_that_onnx_runtime_gives(heads: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    assert main.run(["run", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    test = heads.task().test
    session = onnxruntime.InferenceSession(tmp_path / "run" / "model.onnx")
    outputs = session.run(None, {session.get_inputs()[0].name: test.inputs.numpy()})
    assert [one.shape for one in outputs] == [(100, 3), (100, 2)]
    found = report["end"]["metric"]["value"]
    assert found == pytest.approx(correct(outputs, test.targets.numpy()))
    assert found > 0.8
    assert all(gate["passed"] for gate in report["gates"].values())


@pytest.mark.parametrize("start", ["teacher", "random"])
def test_a_student_learns_both_heads(start: Any, heads: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    train = Training(epochs=40, lr=0.01)
    step = distill.Student(width=0.5, start=start, train=train)
    result = mirabelle.compress(heads.Heads(), heads.task(), [step], out=tmp_path / "run", baseline=train)
    test = heads.task().test
    with torch.no_grad():
        outputs = [one.numpy() for one in result.model(test.inputs)]
    assert result.profile.metric.value == pytest.approx(correct(outputs, test.targets.numpy()))
    assert result.profile.metric.value > 0.6  # the mean of its outputs reaches 0.2


@dataclass
class Record:
    size: Tensor
    sign: Tensor


class Pair(NamedTuple):
    size: Tensor
    sign: Tensor


class Otherwise(nn.Module):
    """Returns the outputs of two heads in another form."""

    def __init__(self, heads: nn.Module, form: Any) -> None:
        super().__init__()
        self.heads, self.form = heads, form

    def forward(self, x: Tensor) -> Any:
        return self.form(*self.heads(x))


@pytest.mark.parametrize("form", [Pair, lambda *both: list(both)], ids=["named tuple", "list"])
def test_lists_and_named_tuples_count_as_tuples(form: Any, heads: Any, tmp_path: Path) -> None:
    steps = [prune.Weights(sparsity=0.1)]
    result = mirabelle.compress(Otherwise(heads.Heads(), form), heads.task(), steps, out=tmp_path / "run")
    assert result.gates["torch_onnx"].passed


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (lambda size, sign: {"size": size, "sign": sign}, "returns dict"),
        (Record, "returns Record"),
        (lambda size, sign: (size, (sign,)), "a tuple that contains tuple"),
        (lambda size, sign: (size, None), "a tuple that contains NoneType"),
    ],
    ids=["dict", "dataclass", "nested", "None"],
)
def test_other_forms_of_outputs_are_refused_by_name(form: Any, words: str, heads: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"E121.*{words}, not a tensor\n.*wrap it"):
        mirabelle.compress(Otherwise(heads.Heads(), form), heads.task(), [prune.Weights(sparsity=0.1)], out=tmp_path / "run")


def test_two_heads_without_a_loss_that_takes_them_are_refused(heads: Any, tmp_path: Path) -> None:
    task = heads.task()
    named = Task(train=(task.train.inputs, task.train.targets[:, 0]), test=(task.test.inputs, task.test.targets[:, 0]))
    with pytest.raises(UserError, match=r"E121.*returns a tuple.*\n.*name a loss and a metric that take a tuple"):
        mirabelle.compress(heads.Heads(), named, [prune.Weights(sparsity=0.1)], out=tmp_path / "run")
