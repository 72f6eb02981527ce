"""A run whose code changed between its start and its continuation is refused, and what changed is named."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from mirabelle import Stop, Task, Training, UserError, compress, prune
from mirabelle.cli import main
from mirabelle.model.program import program_digest
from mirabelle.recipe.file import read_recipe
from mirabelle.run import code
from mirabelle.run.code import Code
from mirabelle.sources.models.onnx_graph import OnnxModule
from mirabelle.task.metric import Metric

TRAIN = Training(epochs=1, batch_size=50, lr=0.02, precision="float32")
STEPS = [prune.Weights(sparsity=0.5, train=TRAIN)]
MINE = """
from typing import ClassVar

import torch
from torch import nn

from mirabelle.model import copied
from mirabelle.objectives import Term
from mirabelle.records import record
from mirabelle.scores import Score
from mirabelle.step import Preview


def largest(tensor):
    return tensor.abs()


@record
class Mine(Score):
    def __call__(self, tensor, evidence):
        return largest(tensor)


class Nothing(nn.Module):
    def forward(self, forward):
        return forward.outputs.sum() * 0.0


@record
class Zero(Term):
    def bind(self, model, task, example):
        return Nothing()


@record
class Halve:
    stage: ClassVar[str] = "thin"
    factor: float = 0.5

    def __call__(self, model, task, run):
        model = copied(model)
        with torch.no_grad():
            model[1].weight.mul_(self.factor)
        return model

    def preview(self, model, task, run):
        return Preview(copied(model), ("halves",))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Scaled())


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = 2.0

    def forward(self, x):
        return x * self.scale
"""
RECIPE = """
schema = 1
[model]
from = "./mine.py:net"
[task]
data = "digits"
[baseline]
train = { epochs = 1, lr = 1e-2, objective = [{ term = "TaskLoss" }, { term = "./mine.py:Zero", weight = 0.5 }] }
[[step]]
use = "./mine.py:Halve"
[[step]]
use = "prune.Weights"
sparsity = 0.5
score = "./mine.py:Mine"
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with code of the user's own, and a run of it that has only begun."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "mine.py").write_text(MINE)
    (folder / "recipe.toml").write_text(RECIPE)
    go_on(folder, at_most="baseline")
    (folder / "run").rename(folder / "as begun")
    return folder


@pytest.fixture
def begun(kept: Path) -> Path:
    (kept / "mine.py").write_text(MINE)
    shutil.rmtree(kept / "run", ignore_errors=True)
    shutil.copytree(kept / "as begun", kept / "run")
    return kept


class KilledError(BaseException):
    pass


def go_on(folder: Path, at_most: str | None = None) -> None:
    file = read_recipe(folder / "recipe.toml")

    def kill(event: Any) -> Stop | None:
        if at_most is not None and event["event"] == "profile" and event["step"] == at_most:
            raise KilledError
        return None

    try:
        made = file.build_model(), file.build_task(None), file.recipe
        compress(*made, out=folder / "run", baseline=file.baseline.train, callbacks=[kill])
    except KilledError:
        return


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("return x * self.scale", "return x * self.scale + 1", "class Scaled"),
        ("self.scale = 2.0", "self.scale = 3.0", "class Scaled, attribute scale of Scaled in the model"),
        ("mul_(self.factor)", "mul_(self.factor + 0.1)", "class Halve"),
        ("return tensor.abs()", "return -tensor.abs()", "function largest"),
        ("outputs.sum() * 0.0", "outputs.sum() * 0.1", "class Nothing"),
    ],
)
def test_changed_code_is_refused_and_named(old: str, new: str, named: str, begun: Path) -> None:
    before = {path: path.read_bytes() for path in (begun / "run").rglob("*") if path.is_file()}
    (begun / "mine.py").write_text(MINE.replace(old, new))
    with pytest.raises(UserError) as caught:
        go_on(begun)
    assert caught.value.code == "E150"
    assert f"other code: {named} changed" in caught.value.message
    assert before == {path: path.read_bytes() for path in (begun / "run").rglob("*") if path.is_file()}


def test_a_comment_is_no_other_code(begun: Path) -> None:
    told = MINE.replace("def largest(tensor):", 'def largest(tensor):\n    """Its size."""')
    (begun / "mine.py").write_text(f"# a comment\n\n{told}")
    go_on(begun)
    assert (begun / "run" / "report.json").is_file()


def test_the_command_refuses_in_one_line(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", str(begun / "recipe.toml"), "--out", str(begun / "whole"), "--quiet"]
    assert main.run(command) == 0
    (begun / "mine.py").write_text(MINE.replace("return x * self.scale", "return x / self.scale"))
    assert main.run(command) == 2
    told = capsys.readouterr().err
    assert "E150" in told
    assert "class Scaled changed since it was started" in told
    assert "undo the change" in told


def test_losses_and_metrics_count(blobs: Task, mlp: nn.Module, tmp_path: Path) -> None:
    def run(weight: float, least: float) -> None:
        task = blobs.replace(
            loss=lambda outputs, targets: nn.functional.cross_entropy(outputs, targets) * weight,
            extra_metrics=(Metric("high", functools.partial(above, least=least)),),
        )
        compress(mlp, task, STEPS, out=tmp_path / "run")

    run(1.0, 0.0)
    with pytest.raises(UserError, match="arguments of function above"):
        run(1.0, 0.5)
    with pytest.raises(UserError, match=r"function .*<lambda> changed"):
        run(2.0, 0.0)


def above(outputs: torch.Tensor, targets: torch.Tensor, least: float) -> torch.Tensor:
    del targets
    return (outputs.amax(1) > least).float()


def test_a_teachers_attribute_counts(blobs: Task, mlp: nn.Module, tmp_path: Path) -> None:
    def run(slope: float) -> None:
        teacher = nn.Sequential(mlp[0], nn.LeakyReLU(slope), mlp[2])
        compress(mlp, blobs, STEPS, out=tmp_path / "run", teacher=teacher)

    run(0.1)
    with pytest.raises(UserError, match="attribute negative_slope of LeakyReLU in the teacher changed"):
        run(0.2)


def test_code_of_another_python_is_told_and_compared_within_it(
    mlp: nn.Module, blobs: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> list[str]:
        told: list[str] = []

        def hear(event: Any) -> None:
            if event["event"] == "warning" and "cpython" in event["text"]:
                told.append(event["text"])

        compress(mlp, blobs, STEPS, out=tmp_path / "run", callbacks=[hear])
        return told

    def under(python: str, digest: str) -> None:
        monkeypatch.setattr("mirabelle.job.job.code_of_run", lambda *_: Code(python, digest, {"class Net": digest}))

    under("cpython-311", "aa")
    assert run() == []
    under("cpython-312", "bb")
    (sentence,) = run()
    assert "started with cpython-311, this is cpython-312" in sentence
    assert run() == []
    under("cpython-312", "cc")
    with pytest.raises(UserError, match="class Net changed"):
        run()
    under("cpython-311", "aa")
    assert run() == []
    under("cpython-311", "dd")
    (tmp_path / "run" / "events.jsonl").unlink()
    with pytest.raises(UserError, match="its code changed since it was started"):
        run()


def test_the_graph_of_an_onnx_file_counts() -> None:
    def graph(kind: str, **attributes: Any) -> nn.Module:
        value = onnx.helper.make_tensor_value_info
        made = onnx.helper.make_graph(
            [onnx.helper.make_node(kind, ["x"], ["y"], **attributes)],
            "g",
            [value("x", onnx.TensorProto.FLOAT, ["n", 3])],
            [value("y", onnx.TensorProto.FLOAT, ["n", 3])],
        )
        return OnnxModule(onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 18)]))

    digests = [program_digest(one) for one in (graph("Relu"), graph("Relu"), graph("Sigmoid"))]
    assert digests[0] == digests[1] != digests[2]
    assert program_digest(graph("LeakyRelu", alpha=0.1)) != program_digest(graph("LeakyRelu", alpha=0.2))


def test_the_parts_are_kept_in_the_journal(begun: Path) -> None:
    events = [json.loads(line) for line in (begun / "run" / "events.jsonl").read_text().splitlines()]
    (told,) = [event for event in events if event["event"] == code.EVENT]
    assert {"class Scaled", "class Halve", "class Mine", "class Zero", "function largest"} <= told["parts"].keys()
