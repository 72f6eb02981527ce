"""Trainings whose weights, gradients and optimizer state are divided between two processes."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from in_processes import Images, in_processes, task_of_digits
from mirabelle import Run, Training
from mirabelle.errors import UserError
from mirabelle.objectives import L1, Growing, TaskLoss
from mirabelle.prune import Weights
from mirabelle.run.journal import read_events
from mirabelle.training import fit
from mirabelle.training.execution import Execution, in_shards, unmeasured_precision
from sharded_trainings import (
    ADAM,
    FAILING,
    FAST,
    INTERRUPTED,
    OTHERS,
    STEPS,
    TRAIN,
    Blocks,
    all_trained,
    interrupted,
    made,
    trained,
)
from test_processes import RECIPE as OF_PROCESSES
from test_processes import ended, run_of, same_files

SCRIPT = str(Path(__file__).with_name("sharded_trainings.py"))
RESULTS = dict[str, dict[str, Any]]


def in_two(folder: Path, names: Sequence[str]) -> RESULTS:
    """What two processes give for some names."""
    for status, _, error in ended(in_processes([SCRIPT, str(folder), *names]), 500):
        assert status == 0, error
    found: RESULTS = torch.load(folder / "found.pt")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def two(folder: Path) -> RESULTS:
    """All fast ones, of two processes; "begun" has a checkpoint of a single one."""
    interrupted(task_of_digits().with_teacher(made(Images)), Run(folder / "begun", seed=7))
    return in_two(folder, [*FAST, "pruned", *INTERRUPTED, *FAILING])


def check_same(one: dict[str, Any], other: dict[str, Any], tolerance: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    assert one
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=10 * tolerance, atol=tolerance, msg=name)


def metrics(folder: Path) -> list[float]:
    return [event["metric"] for event in read_events(folder) if event["event"] == "epoch"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAST, "pruned"])
def test_two_processes_train_shards_as_one_does_the_whole(name: str, two: RESULTS, folder: Path, tmp_path: Path) -> None:
    one = trained(name, tmp_path)
    check_same(one, two[name])
    assert metrics(tmp_path / name) == pytest.approx(metrics(folder / name), abs=1e-6)
    assert metrics(folder / name)
    if name == "pruned":
        assert all(torch.equal(tensor == 0, two[name][key] == 0) for key, tensor in one.items())
        assert sum(int((tensor == 0).sum()) for tensor in two[name].values()) > 0.4 * sum(map(torch.numel, one.values()))


@pytest.mark.slow
def test_each_process_has_a_part_of_what_is_trained(two: RESULTS) -> None:
    assert two["held"]
    assert all(0.45 < share < 0.6 for share in two["held"])


@pytest.mark.slow
def test_an_interrupted_training_goes_on_to_the_same_bits(two: RESULTS) -> None:
    assert all(torch.equal(tensor, two["interrupted"][name]) for name, tensor in two["adamw"].items())


@pytest.mark.slow
def test_a_training_in_shards_goes_on_in_one_process_and_one_of_one_process_in_shards(two: RESULTS, folder: Path) -> None:
    task = task_of_digits().with_teacher(made(Images))
    check_same(two["adamw"], fit(made(Blocks), task, ADAM, Run(folder / "left", seed=7)).state_dict())
    check_same(two["adamw"], two["begun"])
    for name in ("left", "begun"):
        assert [event["event"] for event in read_events(folder / name)].count("taken up") == 1


@pytest.mark.slow
def test_a_term_that_reads_weights_without_saying_so_is_refused(two: RESULTS) -> None:
    assert "E111" in two["reads weights"]["error"]
    assert "a term of the objective reads whole weights of the model" in two["reads weights"]["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "error"),
    [("reads weights", "E111"), ("diverges", "E201"), ("too large", "E203.*memory does not suffice for a training in shards")],
)
def test_a_training_that_fails_leaves_the_weights_that_it_was_given(name: str, error: str, two: RESULTS) -> None:
    assert re.search(error, two[name]["error"])
    assert all(torch.equal(tensor, two[name][key]) for key, tensor in made(Blocks).state_dict().items())


class Nothing:
    """A control that does nothing."""

    def __call__(self, model: nn.Module, progress: float) -> bool:
        del model, progress
        return False


@pytest.mark.parametrize(
    ("training", "controls", "message"),
    [
        ({"objective": 1.0 * TaskLoss() + 1e-4 * L1()}, (), "L1 reads whole weights"),
        ({"objective": 1.0 * TaskLoss() + Growing()}, (), "Growing reads whole weights"),
        ({}, (Nothing(),), "Nothing changes whole weights between optimizer steps"),
    ],
)
def test_what_needs_whole_weights_is_refused_also_in_one_process(
    training: dict[str, Any], controls: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"E111.*{message}"):
        fit(made(Blocks), task_of_digits(), Training(epochs=1, shard=True, **training), Run(tmp_path), controls=controls)


def test_settings_that_exclude_shards_are_refused() -> None:
    for wrong in ({"compile": True}, {"precision": "float16"}):
        with pytest.raises(UserError, match=r"E111.*shard and"):
            Training(epochs=1, shard=True, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"E111.*a gradual schedule changes whole weights"):
        Weights(sparsity=0.5, schedule="cubic", train=TRAIN)


def test_the_precision_of_shards_is_not_measured() -> None:
    assert unmeasured_precision("auto", torch.device("cpu")) == "float32"
    assert unmeasured_precision("bfloat16", torch.device("cpu")) == "bfloat16"
    assert in_shards(Execution.parse("bfloat16 channels_last compiled")) == Execution("bfloat16", channels_last=False)
    assert in_shards(Execution.parse("float16")) == Execution("float32", channels_last=False)


@pytest.mark.slow
def test_all_kinds_of_models_losses_and_steps_train_in_shards_as_in_one_process(tmp_path: Path) -> None:
    names = [*OTHERS, *STEPS]
    found, one = in_two(tmp_path, names), all_trained(names, tmp_path / "one")
    for name in names:
        check_same(one[name], found[name], 1e-3 if name == "bfloat16" else 1e-5)
        assert metrics(tmp_path / "one" / name) == pytest.approx(metrics(tmp_path / name), abs=1e-6)


RECIPE = OF_PROCESSES.replace('precision = "float32"', "shard = true").replace('schedule = "cubic"\n', "")  # which controls


def killed_at_work(recipe: Path, out: Path, seconds: float, victims: Sequence[int]) -> None:
    """Run in two processes, and kill some of them a while after they have met; the others end."""
    before, processes = len(read_events(out)) if out.exists() else 0, in_processes(run_of(recipe, out))
    begin = time.monotonic()
    while (not out.exists() or len(read_events(out)) == before) and time.monotonic() - begin < 60:
        time.sleep(0.02)
    time.sleep(seconds)
    for rank in victims:
        processes[rank].kill()
    ended(processes)


@pytest.mark.slow
def test_runs_in_shards_that_are_killed_end_with_the_same_bits_and_go_on_with_one_process(tmp_path: Path) -> None:
    recipe, reference, alone = tmp_path / "recipe.toml", tmp_path / "reference", tmp_path / "alone"
    recipe.write_text(RECIPE)
    assert [status for status, _, _ in ended(in_processes(run_of(recipe, reference)))] == [0, 0]
    draws = random.Random(7)
    for number in range(2):
        out = tmp_path / str(number)
        for _ in range(2):
            killed_at_work(recipe, out, draws.uniform(0, 2), draws.choice([[0], [1], [0, 1]]))
        assert [status for status, _, _ in ended(in_processes(run_of(recipe, out)))] == [0, 0]
        assert same_files(out, reference), number
    killed_at_work(recipe, alone, 1.0, [0, 1])
    done = subprocess.run([sys.executable, *run_of(recipe, alone)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    values = [json.loads((out / "report.json").read_text())["end"]["metric"]["value"] for out in (alone, reference)]
    assert values[0] == pytest.approx(values[1], abs=0.03)
