"""`mirabelle.auto`: the goal is met by a recipe that runs by itself, a killed search goes on, and what cannot be is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mirabelle
from mirabelle import Run, Task, Training, UserError
from mirabelle.model.architecture import architecture_of
from mirabelle.planning.learning_rate import RATES, learning_rate
from mirabelle.planning.trials import TrialSettings
from mirabelle.training import fit

QUICK = {"minutes": 0.3}


@pytest.fixture(scope="module")
def task() -> Task:
    draw = torch.Generator().manual_seed(0)
    centers, targets = 2.0 * torch.randn(3, 8, generator=draw), torch.arange(900) % 3
    inputs = centers[targets] + torch.randn(900, 8, generator=draw)
    parts = {"train": (0, 500), "validation": (500, 700), "test": (700, 900)}
    return Task(**{name: (inputs[a:b], targets[a:b]) for name, (a, b) in parts.items()}, name="blobs")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def net(task: Task, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 3))
    return fit(model, task, Training(epochs=8, batch_size=32, lr=3e-3), Run(tmp_path_factory.mktemp("net"))).eval()


@pytest.fixture(scope="module")
def known(net: nn.Module, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was measured of the network for goals with a size, which is not measured again where it lies."""
    folder = tmp_path_factory.mktemp("known")
    mirabelle.auto(net, task, {"size": "50%", "latency": "any"}, folder, dry_run=True)
    return folder / "measured.json"


@pytest.fixture
def out(known: Path, tmp_path: Path) -> Path:
    (tmp_path / "auto").mkdir()
    return Path(shutil.copy(known, tmp_path / "auto")).parent


@pytest.mark.parametrize(
    "goal",
    [
        {"max_drop": "3pt", "size": "8%"},
        pytest.param(
            {"max_drop": "3pt", "size": "20%", "parameters": "30%", "macs": "40%", "latency": "any"}, marks=pytest.mark.slow
        ),
    ],
)
def test_the_goal_is_met_and_the_recipe_runs_by_itself(
    goal: dict[str, Any], net: nn.Module, task: Task, out: Path, tmp_path: Path
) -> None:
    before = [parameter.clone() for parameter in net.parameters()]
    told: list[str] = []
    found = mirabelle.auto(net, task, goal, out, tell=told.append, **QUICK)
    assert found.met
    assert found.best is not None
    assert not found.best.shortfalls
    assert found.plan.costs.keys() - {"latency"} == goal.keys() - {"max_drop", "latency"}
    assert any("expected before any training" in line for line in told)
    assert all(torch.equal(one, other) for one, other in zip(before, net.parameters(), strict=True))
    best = json.loads((out / "best.json").read_text())
    assert (out / "model.onnx").read_bytes() == (out / best["best"] / "model.onnx").read_bytes()
    assert len(best["attempts"]) == len(found.attempts)
    steps = mirabelle.Recipe.from_data(list(found.attempts[-1].steps))
    again = mirabelle.compress(net, task, steps, goal, tmp_path / "again")
    assert (tmp_path / "again" / "model.mira").read_bytes() == (found.best.folder / "model.mira").read_bytes()
    assert again.met


@pytest.mark.slow
def test_without_a_limit_the_file_becomes_as_small_as_the_metric_allows(net: nn.Module, task: Task, out: Path) -> None:
    found = mirabelle.auto(net, task, {"max_drop": "2pt", "latency": "any"}, out, minutes=0.05)
    assert found.best is not None
    assert found.best.profile.size_bytes.packed < 0.15 * found.best.start.size_bytes.torch  # type: ignore[operator]
    best = min((one for one in found.attempts if one.fits), key=lambda one: one.costs["size"])
    assert found.best.folder.name == best.name


def test_plans_of_a_small_network_are_made_and_the_better_one_is_first(
    net: nn.Module, task: Task, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    goal = {"size": "7%", "latency": "any"}
    plan = mirabelle.auto(net, task, goal, out, dry_run=True, tell=told.append).plan
    made = [float(line.rsplit(" ", 1)[1]) for line in told if ": made, the outputs change by" in line]
    assert len(made) == 2
    assert plan.metric == pytest.approx(max(made), abs=1e-4)
    kept = json.loads((out / "plan.json").read_text())["plans"]
    assert kept[0]["metric"] == max(one["metric"] for one in kept)
    monkeypatch.setattr("mirabelle.planning.plan._MADE_MACS", 0)
    (out / "plan.json").unlink()
    told.clear()
    mirabelle.auto(net, task, goal, out, dry_run=True, tell=told.append)
    assert not any("made" in line for line in told), "of a large network nothing is made"


def test_a_plan_alone_runs_nothing(net: nn.Module, task: Task, out: Path) -> None:
    told: list[str] = []
    found = mirabelle.auto(net, task, {"size": "10%", "latency": "any"}, out, dry_run=True, tell=told.append)
    assert (found.best, found.attempts, found.met) == (None, [], False)
    assert found.plan.costs["size"] <= 0.1 * sum(4 * p.numel() for p in net.parameters())
    assert not (out / "attempt-1").exists()
    assert "are used" in told[0], "what was measured is not measured again"


@pytest.mark.slow
def test_another_goal_in_the_same_folder_has_attempts_of_its_own(net: nn.Module, task: Task, out: Path) -> None:
    first = mirabelle.auto(net, task, {"size": "12%", "max_drop": "3pt", "latency": "any"}, out, **QUICK)
    second = mirabelle.auto(net, task, {"size": "6%", "max_drop": "3pt", "latency": "any"}, out, **QUICK)
    assert first.best is not None
    assert second.best is not None
    assert (first.best.folder, second.best.folder) == (out / "attempt-1", out / "goal-2" / "attempt-1")
    assert json.loads((out / "best.json").read_text())["best"] == "goal-2/attempt-1"
    assert (out / "model.mira").read_bytes() == (second.best.folder / "model.mira").read_bytes()


@pytest.mark.parametrize(
    "goal", [{"size": "20%", "metric": 1.0, "latency": "any"}, {"onnx_size": "60%", "latency": "any", "metric": 0.9999}]
)
def test_a_metric_out_of_reach_ends_with_the_closest(goal: dict[str, Any], task: Task, tmp_path: Path) -> None:
    """Also where the plan has nothing that could be trained, and where the time is over at once."""
    torch.manual_seed(1)
    weak = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
    weak = fit(weak, task, Training(epochs=1, batch_size=32, lr=5e-3), Run(tmp_path / "net")).eval()
    found = mirabelle.auto(weak, task, goal, tmp_path / "auto", minutes=0.001)
    assert found.best is not None
    assert not found.met
    assert [one.name for one in found.best.shortfalls] == ["metric"]


def test_a_plan_without_anything_to_train_is_run_once(task: Task, tmp_path: Path) -> None:
    """Numbers of 8 bits in whole layers have nothing to train: other plans follow, not the same again."""
    torch.manual_seed(1)
    weak = nn.Sequential(nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 3))
    weak = fit(weak, task, Training(epochs=1, batch_size=32, lr=3e-4), Run(tmp_path / "net")).eval()
    found = mirabelle.auto(weak, task, {"onnx_size": "45%", "latency": "any", "metric": 1.0}, tmp_path / "auto", minutes=0.03)
    recipes = [json.dumps(one.steps) for one in found.attempts]
    assert found.attempts[0].metric < 1.0, "the first plan misses the metric"
    assert not found.attempts[0].trained
    assert len(set(recipes)) == len(recipes)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(("cost", "count"), [("size", 4), pytest.param("latency", 1, marks=pytest.mark.slow)])
def test_a_front_of_metric_and_a_cost(cost: Any, count: int, net: nn.Module, task: Task, out: Path) -> None:
    pytest.importorskip("optuna")
    told: list[str] = []
    goal = {"size": "20%", "max_drop": "5pt", "latency": "any"}
    found = mirabelle.auto(net, task, goal, out, trials=TrialSettings(count, front=cost), tell=told.append)
    trials = [line.partition(": ")[2].split(" (")[0].split(f", {cost} ") for line in told if line.startswith("trial ")]
    every = [(float(metric), float(value.replace(",", ""))) for metric, value in trials]
    assert every[0][0] == pytest.approx(found.plan.metric, abs=5e-3), "the first trial is the plan"
    front = json.loads((out / "front.json").read_text())
    points = [(round(point["accuracy"], 4), point[cost]) for point in front["points"]]
    better = [one for one in every if not any(a >= one[0] and b <= one[1] and (a, b) != one for a, b in every)]
    assert [a for a, _ in sorted(points)] == [a for a, _ in sorted(set(better))]
    assert [b for _, b in sorted(points)] == pytest.approx([b for _, b in sorted(set(better))], rel=1e-4)
    assert sorted(path.stem for path in (out / "front").iterdir()) == sorted(str(point["trial"]) for point in front["points"])
    fitting = [point for point in front["points"] if point["accuracy"] >= front["start"] - 0.04] or front["points"][-1:]
    assert list(found.attempts[0].steps) == fitting[0]["step"], "the cheapest that keeps the metric is run"
    if cost == "size":
        with pytest.raises(UserError, match=r"E150.*of another model, data or goal"):
            mirabelle.auto(net, task, goal, out, trials=TrialSettings(4))


@pytest.mark.slow
def test_a_front_begins_with_the_given_model_where_the_limit_is_its_own(net: nn.Module, task: Task, tmp_path: Path) -> None:
    """Nothing is to be done for the limit, and so there is no recipe: the front has the trials that change something."""
    pytest.importorskip("optuna")
    goal = {"macs": "100%", "max_drop": "5pt", "latency": "any"}
    mirabelle.auto(net, task, goal, tmp_path, trials=TrialSettings(4, front="macs"))
    points = json.loads((tmp_path / "front.json").read_text())["points"]
    assert points
    assert all(point["step"] for point in points)


def test_a_metric_that_no_model_has_is_refused_at_once(net: nn.Module, task: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="E113"):
        mirabelle.auto(net, task, {"metric": "150%"}, tmp_path)


def test_a_model_that_cannot_be_exported_is_refused_with_the_reason(task: Task, net: nn.Module, tmp_path: Path) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) if x.sum() > -1e9 else self.inner(x) * 2

    with pytest.raises(UserError, match="E1"):
        mirabelle.auto(Branching().eval(), task, {"size": "50%"}, tmp_path)


def test_a_killed_search_goes_on(net: nn.Module, task: Task, tmp_path: Path) -> None:
    goal = {"max_drop": "0pt", "macs": "4.5%", "latency": "any"}

    def killed(event: dict[str, Any]) -> None:
        if event.get("event") == "gate":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mirabelle.auto(net, task, goal, tmp_path / "killed", callbacks=(killed,), minutes=0.03)  # type: ignore[arg-type]
    kept = json.loads((tmp_path / "killed" / "attempt-1.json").read_text())
    found = mirabelle.auto(net, task, goal, tmp_path / "killed", minutes=0.03)
    assert json.loads((tmp_path / "killed" / "attempt-1.json").read_text())["step"] == kept["step"]
    whole = mirabelle.compress(
        net, task, mirabelle.Recipe.from_data(kept["step"]), goal, tmp_path / "whole"
    )  # the same recipe, not killed
    assert found.attempts[0].steps == kept["step"]
    first = tmp_path / "killed" / "attempt-1"
    assert (first / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()


def test_a_limit_that_nobody_can_meet_is_refused_with_the_least(net: nn.Module, task: Task, out: Path) -> None:
    with pytest.raises(UserError, match=r"E114.*the least that is expected.*size") as caught:
        mirabelle.auto(net, task, {"size": "60 B", "latency": "any"}, out)
    assert "relax size" in caught.value.remedy


def test_a_model_that_has_learned_nothing_is_refused(task: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"E121.*same answer for every input"):
        mirabelle.auto(nn.Sequential(nn.Linear(8, 3)), task, {"size": "50%"}, tmp_path)


@pytest.mark.slow
def test_a_regression_without_labels_is_compressed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 6)
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 2)).eval()
    task = Task(train=x[:250], validation=x[250:320], test=x[320:])
    found = mirabelle.auto(model, task, {"size": "30%", "max_drop": "10%", "latency": "any"}, tmp_path, minutes=0.05)
    assert found.best is not None
    assert found.best.profile.size_bytes.packed < 0.3 * found.best.start.size_bytes.torch  # type: ignore[operator]


def test_the_learning_rate_is_that_of_the_lowest_loss(net: nn.Module, task: Task, run: Run) -> None:
    fresh = nn.Sequential(nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 3))
    rate = learning_rate(fresh, task, Training(epochs=9, batch_size=32), run)
    assert rate in RATES[-2:], "a network that knows nothing needs large steps"
    assert run.decided("lr") == rate
    assert learning_rate(fresh, task, Training(epochs=9, batch_size=32), run) == rate


def test_nothing_is_asked_of_a_model_that_is_within_the_limits(net: nn.Module, task: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"E112.*within the limits as it is"):
        mirabelle.auto(net, task, {"macs": "100%", "latency": "any"}, tmp_path)
    assert not architecture_of(net).pruned
