"""The whole job in Python, and its kill-and-repeat."""

from __future__ import annotations

import copy
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from mirabelle import Goal, Recipe, Result, Task, Training, compress, load, prune, quantize, unpack
from mirabelle.errors import UserError
from mirabelle.job import job
from mirabelle.job.job import Source
from mirabelle.model.state import fingerprint
from mirabelle.runtime.gates import Gate

TRAIN = Training(epochs=4, batch_size=32, lr=0.02, precision="float32")  # what is measured may differ each time
STEPS = [prune.Weights(sparsity=0.6, schedule="cubic", train=TRAIN), quantize.Static()]


@pytest.fixture(scope="module")
def kept() -> list[Result]:
    """The run that `done` copies, once there is one."""
    return []


@pytest.fixture
def done(mlp: nn.Module, blobs: Task, tmp_path: Path, kept: list[Result], tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run that has ended, in a folder that the test may damage."""
    if not kept:
        out = tmp_path_factory.mktemp("done") / "run"
        kept.append(compress(mlp, blobs, STEPS, {"max_drop": "5pt", "size": "200%"}, out=out, baseline=TRAIN))
    shutil.copytree(kept[0].folder, tmp_path / "run")
    return replace(kept[0], folder=tmp_path / "run")


def test_the_folder_holds_everything_that_ships(done: Result, mlp: nn.Module, blobs: Task) -> None:
    names = {path.name for path in done.folder.iterdir()}
    assert names >= {
        "recipe.toml", "environment.json", "events.jsonl", "steps", "model.onnx", "model.mira", "model.safetensors",
        "architecture.json", "report.html", "report.json", "README.md",
    }  # fmt: skip
    assert {path.name for path in (done.folder / "steps").iterdir()} == {"0-baseline", "1-prune.weights", "2-quantize.static"}
    for step in (done.folder / "steps").iterdir():
        assert {path.name for path in step.iterdir()} == {"model.safetensors", "architecture.json", "profile.json"}
    onnx.checker.check_model(onnx.load(done.folder / "model.onnx"), full_check=True)
    assert unpack((done.folder / "model.mira").read_bytes()) == (done.folder / "model.onnx").read_bytes()
    loaded = load(mlp, done.folder)
    assert fingerprint(loaded) == fingerprint(done.model)
    assert done.met
    assert all(gate.passed for gate in done.gates.values())


def test_the_report_has_the_keys_that_others_rely_on(done: Result) -> None:
    report = json.loads((done.folder / "report.json").read_text())
    assert report["schema"] == 1
    assert set(report) >= {"schema", "recipe", "environment", "goal", "start", "end", "trail", "gates", "artifacts"}
    assert report["goal"]["met"] is True
    assert report["goal"]["shortfalls"] == []
    for end in ("start", "end"):
        profile = report[end]
        assert set(profile["metric"]) == {"name", "value", "low", "high", "n", "not_finite"}
        assert set(profile["size_bytes"]) == {"torch", "onnx", "onnx_gzip", "packed"}
        assert set(profile["latency_ms"]) == {"median", "p95", "runtime", "threads", "batch"}
        assert profile["metric"]["low"] <= profile["metric"]["value"] <= profile["metric"]["high"]
        assert profile["metric"]["n"] == 100
        for key in ("parameters", "nonzero_parameters", "macs"):
            assert isinstance(profile[key], int)
    assert [entry["step"] for entry in report["trail"]] == ["baseline", "prune.Weights", "quantize.Static"]
    assert all(set(entry) == {"step", "profile", "seconds"} for entry in report["trail"])
    assert set(report["gates"]) == {"torch_onnx", "packed_unpacked", "saved_loaded"}
    assert all({"passed", "worst"} <= set(gate) for gate in report["gates"].values())
    for path in report["artifacts"].values():
        assert (done.folder / path).is_file()
    for end, file in (("onnx", "model.onnx"), ("packed", "model.mira"), ("torch", "model.safetensors")):
        assert report["end"]["size_bytes"][end] == (done.folder / file).stat().st_size


def test_the_page_is_self_contained_and_escapes_names(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    task = blobs.replace(name="<script>alert(1)</script>")
    result = compress(mlp, task, [quantize.Static()], out=tmp_path / "run")
    page = (result.folder / "report.html").read_text("utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=|https?://|@import|url\(", page)
    assert "default-src 'none'" in page


def test_a_goal_that_is_missed_says_by_how_much_and_keeps_the_model(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    result = compress(mlp, blobs, [quantize.Static()], Goal(size="10 B", macs="50%"), out=tmp_path / "run")
    assert not result.met
    assert [shortfall.name for shortfall in result.shortfalls] == ["size", "macs"]
    assert result.shortfalls[0].missed_by == result.profile.size_bytes.packed - 10
    assert (result.folder / "model.mira").is_file()
    assert "The goal for size is not met" in (result.folder / "report.html").read_text("utf-8")


def test_a_gate_that_fails_is_an_error_after_the_report(
    mlp: nn.Module, blobs: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Gate(passed=False, worst=9.0, detail='the first layer that differs is "2"')
    monkeypatch.setattr(job, "torch_equals_onnx", lambda *_, **__: broken)
    with pytest.raises(UserError, match='gate torch_onnx failed: the first layer that differs is "2"') as caught:
        compress(mlp, blobs, [quantize.Static()], out=tmp_path / "run")
    assert caught.value.exit_status == 4
    assert "FAILED" in (tmp_path / "run" / "report.html").read_text("utf-8")
    assert json.loads((tmp_path / "run" / "report.json").read_text())["gates"]["torch_onnx"]["passed"] is False
    with pytest.raises(UserError, match="E302"):  # and again when the ended run is asked for
        compress(mlp, blobs, [quantize.Static()], out=tmp_path / "run")


def test_the_given_model_is_left_as_it_was(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    before = fingerprint(mlp)
    mlp.train()
    compress(mlp, blobs, STEPS, out=tmp_path / "run", baseline=TRAIN)
    assert fingerprint(mlp) == before
    assert mlp.training


def test_the_same_call_gives_the_ended_result_again(done: Result, mlp: nn.Module, blobs: Task) -> None:
    report = (done.folder / "report.json").read_bytes()
    again = compress(mlp, blobs, STEPS, {"max_drop": "5pt", "size": "200%"}, out=done.folder, baseline=TRAIN)
    assert (done.folder / "report.json").read_bytes() == report
    assert fingerprint(again.model) == fingerprint(done.model)
    assert (again.start, again.profile, again.met) == (done.start, done.profile, done.met)


@pytest.mark.parametrize("name", ["model.mira", "model.onnx", "model.safetensors"])
def test_what_is_damaged_or_missing_of_an_ended_run_is_made_again(done: Result, mlp: nn.Module, blobs: Task, name: str) -> None:
    whole = (done.folder / name).read_bytes()
    for damage in (whole[:-1] + b"?", None):
        (done.folder / name).unlink() if damage is None else (done.folder / name).write_bytes(damage)
        compress(mlp, blobs, STEPS, {"max_drop": "5pt", "size": "200%"}, out=done.folder, baseline=TRAIN)
        assert (done.folder / name).read_bytes() == whole


@pytest.mark.parametrize("change", ["recipe", "seed", "data", "model", "goal"])
def test_a_folder_that_holds_another_run_is_refused(done: Result, mlp: nn.Sequential, blobs: Task, change: str) -> None:
    arguments: dict[str, Any] = {"goal": {"max_drop": "5pt", "size": "200%"}, "baseline": TRAIN, "seed": 0}
    steps = STEPS
    if change == "recipe":
        steps = [quantize.Static()]
    elif change == "seed":
        arguments["seed"] = 1
    elif change == "data":
        blobs.test.inputs[0] += 1
    elif change == "model":
        with torch.no_grad():
            mlp[0].weight[0, 0] += 1
    else:
        arguments["goal"] = {}
    with pytest.raises(UserError, match="contains another run") as caught:
        compress(mlp, blobs, steps, out=done.folder, **arguments)
    assert caught.value.exit_status == 2


def test_a_folder_with_other_things_in_it_is_not_used(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(UserError, match="contains no run"):
        compress(mlp, blobs, [quantize.Static()], out=tmp_path)
    with pytest.raises(UserError, match="is a file"):
        compress(mlp, blobs, [quantize.Static()], out=tmp_path / "thesis.tex")


def test_decisions_of_a_run_reproduce_it_to_the_bit(done: Result, mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    import tomllib

    decisions = tomllib.loads((done.folder / "recipe.toml").read_text())["decisions"]
    assert "threads" in decisions
    goal = {"max_drop": "5pt", "size": "200%"}
    again = compress(mlp, blobs, STEPS, goal, out=tmp_path / "again", baseline=TRAIN, source=Source(decisions=decisions))
    assert (again.folder / "model.mira").read_bytes() == (done.folder / "model.mira").read_bytes()


def test_another_teacher_may_be_given_and_trained(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    torch.manual_seed(5)
    teacher = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    result = compress(mlp, blobs, STEPS, out=tmp_path / "run", teacher=teacher, teacher_train=TRAIN)
    assert (result.folder / "steps" / "0-teacher" / "profile.json").is_file()
    assert result.profile.metric.value > 0.85


def test_a_teacher_that_knows_less_than_its_student_is_told_with_both_numbers(
    mlp: nn.Module, blobs: Task, tmp_path: Path
) -> None:
    told: list[str] = []

    def listen(event: Any) -> None:
        if event["event"] == "warning":
            told.append(event["text"])

    teacher = nn.Linear(8, 3)
    inputs, targets = blobs.train.inputs, blobs.train.targets
    centers = torch.stack([inputs[targets == k].mean(0) for k in range(3)])
    with torch.no_grad():
        teacher.weight.zero_()
        teacher.weight[:, 0] = centers[:, 0]  # it looks at one of eight dimensions
        teacher.bias.copy_(-centers[:, 0].square() / 2)
    compress(mlp, blobs, STEPS, out=tmp_path / "weak", baseline=TRAIN, teacher=teacher, callbacks=[listen])
    (text,) = told
    numbers = [float(number) for number in re.findall(r"[01]\.\d{4}", text)]
    assert text.startswith("the teacher has accuracy 0.")
    assert numbers[0] < 0.8
    assert numbers[1] > 0.85
    compress(mlp, blobs, STEPS, out=tmp_path / "own", baseline=TRAIN, callbacks=[listen])
    assert len(told) == 1, "a model that teaches itself is no news"


def test_a_step_that_dies_is_done_again_and_the_others_are_not(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    whole = compress(mlp, blobs, STEPS, out=tmp_path / "whole", baseline=TRAIN)

    original = quantize.Static.__call__

    def die(self: Any, model: nn.Module, task: Task, run: Any) -> nn.Module:
        if tmp_path not in run.folder.parents:  # tried before the run begins
            return original(self, model, task, run)
        raise KeyboardInterrupt

    quantize.Static.__call__ = die
    try:
        with pytest.raises(KeyboardInterrupt):
            compress(mlp, blobs, STEPS, out=tmp_path / "killed", baseline=TRAIN)
    finally:
        quantize.Static.__call__ = original
    again = compress(mlp, blobs, STEPS, out=tmp_path / "killed", baseline=TRAIN)
    assert (again.folder / "model.mira").read_bytes() == (whole.folder / "model.mira").read_bytes()
    begun = [json.loads(line) for line in (again.folder / "events.jsonl").read_text().splitlines()]
    steps = [event["step"] for event in begun if event["event"] == "begin"]
    assert steps == ["baseline", "prune.Weights", "quantize.Static", "quantize.Static", "gates and measurements"]


def test_a_gate_without_bound_is_reported_too(
    mlp: nn.Module, blobs: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        job, "torch_equals_onnx", lambda *_, **__: Gate(passed=False, worst=float("inf"), detail="shapes differ")
    )
    for _ in range(2):
        with pytest.raises(UserError, match="E302"):
            compress(mlp, blobs, [quantize.Static()], out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "report.json").read_text())["gates"]["torch_onnx"]["worst"] is None


@pytest.mark.parametrize("change", ["inputs", "targets", "outputs", "metric"])
def test_one_batch_is_tried_before_anything_is_begun(mlp: nn.Sequential, blobs: Task, tmp_path: Path, change: str) -> None:
    inputs, targets = blobs.train.inputs, blobs.train.targets
    model: nn.Module = mlp
    if change == "inputs":
        inputs = inputs[:, :5]
    elif change == "targets":
        targets = nn.functional.one_hot(targets)
    elif change == "outputs":
        model = nn.LSTM(8, 3)
    metric = (lambda outputs, _: outputs.mean()) if change == "metric" else "accuracy"
    task = Task(train=(inputs, targets), test=(inputs, targets), metric=metric)
    with pytest.raises(UserError) as caught:
        compress(model, task, [quantize.Static()], out=tmp_path / "run")
    assert caught.value.code == ("E121" if change in ("inputs", "outputs") else "E131")
    assert not (tmp_path / "run").exists()


def test_a_regression_is_compressed_by_its_own_loss(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 4, generator=generator)
    targets = inputs @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 1
    task = Task(
        train=(inputs[:300], targets[:300]), test=(inputs[300:], targets[300:]), loss="mse", metric="negative_squared_error"
    )
    train = Training(epochs=40, batch_size=20, lr=0.02)
    steps = [prune.Weights(sparsity=0.25, schedule="cubic", train=train), quantize.Static()]
    result = compress(nn.Linear(4, 1), task, steps, {"max_drop": "1000pt"}, out=tmp_path / "run", baseline=train)
    assert result.start.metric.value > -0.01
    assert result.profile.metric.value > -0.05
    assert int((load(nn.Linear(4, 1), tmp_path / "run" / "steps" / "1-prune.weights").weight == 0).sum()) == 1


def test_the_first_instant_of_a_killed_run_can_be_repeated(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml.writing").write_bytes(b"sche")
    assert compress(mlp, blobs, [quantize.Dynamic()], out=tmp_path / "run").met


def test_what_a_kill_left_half_written_is_cleared_away(done: Result, mlp: nn.Module, blobs: Task) -> None:
    folder = done.folder
    names = {path for path in folder.rglob("*") if path.is_file()}
    (folder / "report.json").unlink()
    (folder / "steps" / "0-baseline" / "checkpoint.safetensors").write_bytes(b"written before profile.json, not yet removed")
    (folder / "steps" / "0-baseline" / "checkpoint.safetensors.writing").write_bytes(b"half of")
    (folder / "model.onnx.writing").write_bytes(b"")
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"time": 1, "ev')
    compress(mlp, blobs, STEPS, {"max_drop": "5pt", "size": "200%"}, out=folder, baseline=TRAIN)
    assert {path for path in folder.rglob("*") if path.is_file()} == names
    told = [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
    assert told.index("resumed") == told.index("end") + 1


def test_recipes_and_lists_of_steps_are_the_same(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    one = compress(mlp, blobs, Recipe([quantize.Dynamic()]), out=tmp_path / "one")
    other = compress(copy.deepcopy(mlp), blobs, [quantize.Dynamic()], out=tmp_path / "other")
    assert (one.folder / "model.mira").read_bytes() == (other.folder / "model.mira").read_bytes()


RECIPE = """
schema = 1
[model]
from = "mirabelle.sources.zoo:digits_cnn"
[task]
data = "digits"
[baseline]
train = { epochs = 40, batch_size = 64, lr = 3e-3 }
[[step]]
use = "prune.Weights"
sparsity = 0.8
schedule = "cubic"
train = { epochs = 50, batch_size = 64, lr = 3e-3 }
[[step]]
use = "quantize.Static"
"""


@pytest.mark.slow
def test_a_run_killed_from_outside_and_repeated_ends_with_the_same_file(tmp_path: Path) -> None:
    """SIGKILL to the real command at moments spread over the run, then the same command."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    decided = tmp_path / "decided.toml"

    def command(path: Path, out: str) -> list[str]:
        return [sys.executable, "-m", "mirabelle.cli.main", "run", str(path), "--out", str(tmp_path / out), "--quiet"]

    subprocess.run(command(recipe, "whole"), check=True, capture_output=True)
    # The machine's timings may decide otherwise in the second run; what a run decided reproduces it.
    decided.write_text((tmp_path / "whole" / "recipe.toml").read_text())
    events = tmp_path / "killed" / "events.jsonl"
    for awaited in (
        '"epoch": 25,',
        '"epoch": 38,',
        '"where": "steps/1-prune.weights", "epoch": 30,',
        '"step": "quantize.Static"',
    ):
        process = subprocess.Popen(command(decided, "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if events.is_file() and awaited in events.read_text():
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert awaited in events.read_text(), "the run ended before it could be killed"
    subprocess.run(command(decided, "killed"), check=True, capture_output=True)
    assert '"taken up"' in events.read_text(), "no checkpoint was ever taken up, so nothing was shown"
    for name in ("model.mira", "model.onnx", "model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
