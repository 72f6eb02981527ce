"""A step that makes the model slower is undone, layer by layer, unless the goal allows it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mirabelle
from mirabelle import Task, quantize
from mirabelle.job import never_slower
from mirabelle.job.never_slower import Form, Guard, Trial, form_of, without
from mirabelle.report import read_report
from mirabelle.runtime.latency import Ratio
from mirabelle.task.goal import Goal
from mirabelle.task.profile import Latency

UNDONE = "steps/1-quantize.static/undone"


@pytest.fixture(autouse=True)
def _guarded(monkeypatch: pytest.MonkeyPatch, undone: Callable[..., str]) -> None:
    monkeypatch.setattr(Trial, "undone", undone)
    monkeypatch.setattr(never_slower, "BRIEFLY", 0.05)
    monkeypatch.setattr(never_slower, "LONG", 0.2)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, float]], None]:
    """Let a quantized layer take so many times as long as before, in the runtime and in its profile: no test measures."""

    def pretend(factors: Mapping[str, float]) -> None:
        def of(form: Form, layers: Any = tuple(factors)) -> dict[str, float]:
            modules = dict(form.model.named_modules())
            return {name: factors[name] if hasattr(modules[name], "codes") else 1.0 for name in layers}

        def compare(_: Guard, before: Form, after: Form) -> tuple[Latency, Latency, Ratio, bool]:
            first, last = (sum(of(form).values()) for form in (before, after))
            times = [Latency(ms, ms, "onnxruntime", 1, 1) for ms in (first, last)]
            return times[0], times[1], Ratio(last / first, last / first / 1.01, last / first * 1.01), last > 1.02 * first

        monkeypatch.setattr(Guard, "compare", compare)
        monkeypatch.setattr(Guard, "layer_times", lambda _, form, layers, whole_ms: of(form, layers))

    return pretend


def compressed(model: nn.Module, task: Task, out: Path, goal: dict[str, Any] | None = None) -> mirabelle.Result:
    return mirabelle.compress(model, task, [quantize.Static()], goal, out=out)


def quantized_layers(result: mirabelle.Result) -> list[str]:
    return [name for name, module in result.model.named_modules() if hasattr(module, "codes")]


def decision(out: Path) -> Any:
    return read_report(out).recipe["decisions"][UNDONE]


def test_layers_that_do_not_gain_return_to_floating_point(mlp: nn.Module, blobs: Task, tmp_path: Path, timed: Any) -> None:
    timed({"0": 1.5, "2": 0.8})
    result = compressed(mlp, blobs, tmp_path / "run")
    assert quantized_layers(result) == ["2"]
    assert json.loads(decision(tmp_path / "run")) == ["0"]
    (speed,) = read_report(tmp_path / "run").speeds
    assert [str(layer) for layer in speed.returned] == ["0 1 → 1.5 ms"]
    assert "without 0 1 → 1.5 ms: 1.8 ms, 1.11× faster" in speed.in_words()
    assert "without 0" in (tmp_path / "run/report.html").read_text()


def test_a_step_without_any_gain_is_undone(mlp: nn.Module, blobs: Task, tmp_path: Path, timed: Any) -> None:
    timed({"0": 1.5, "2": 1.2})
    result = compressed(mlp, blobs, tmp_path / "run")
    assert quantized_layers(result) == []
    assert decision(tmp_path / "run") == "all"
    (speed,) = read_report(tmp_path / "run").speeds
    assert speed.in_words() == (
        "2 → 2.7 ms, 1.35× slower (1.34 to 1.36): undone as a whole; slower layers: 0 1 → 1.5 ms, 2 1 → 1.2 ms"
    )
    x = blobs.test.inputs
    assert torch.equal(result.model(x), mlp(x))


def test_a_step_that_gains_gains_more_without_a_layer_that_loses(
    mlp: nn.Module, blobs: Task, tmp_path: Path, timed: Any
) -> None:
    timed({"0": 0.2, "2": 1.5})
    assert quantized_layers(compressed(mlp, blobs, tmp_path / "speed")) == ["0"]
    assert quantized_layers(compressed(mlp, blobs, tmp_path / "bytes", {"size": "90%"})) == ["0", "2"]


def test_a_goal_of_bytes_alone_keeps_a_slower_model_and_says_so_first(
    mlp: nn.Module, blobs: Task, tmp_path: Path, timed: Any
) -> None:
    timed({"0": 1.5, "2": 1.2})
    result = compressed(mlp, blobs, tmp_path / "run", {"size": "90%", "latency": "any"})
    assert quantized_layers(result) == ["0", "2"]
    assert read_report(tmp_path / "run").speeds[0].ratio.slower


def test_a_goal_of_bytes_that_speed_forbids_names_the_setting(mlp: nn.Module, blobs: Task, tmp_path: Path, timed: Any) -> None:
    timed({"0": 1.5, "2": 1.2})
    result = compressed(mlp, blobs, tmp_path / "run", {"size": "5%"})
    assert [shortfall.name for shortfall in result.shortfalls] == ["size"]
    assert any('`latency = "any"`' in remark for remark in read_report(tmp_path / "run").remarks)


def test_a_run_repeats_what_was_undone(
    mlp: nn.Module, blobs: Task, tmp_path: Path, timed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed({"0": 1.5, "2": 0.8})
    first = compressed(mlp, blobs, tmp_path / "run")
    (tmp_path / "run/report.json").unlink()
    (tmp_path / "run/steps/1-quantize.static/profile.json").unlink()
    monkeypatch.setattr(Guard, "compare", lambda *_: pytest.fail("a decision is not measured again"))
    again = compressed(mlp, blobs, tmp_path / "run")
    assert quantized_layers(again) == ["2"]
    assert all(map(torch.equal, first.model.state_dict().values(), again.model.state_dict().values()))


def test_names_are_no_patterns() -> None:
    assert without(quantize.Dynamic(), ["a[0]"]).exclude == ("a[[]0]",)  # type: ignore[attr-defined]
    assert without(quantize.Dynamic(), []) == quantize.Dynamic()


def test_no_model_is_shipped_slower(tmp_path: Path) -> None:
    """Measured: quantizing tiny layers costs more than it saves; quantizing a large one saves, and is kept."""
    torch.manual_seed(0)
    small = [part for _ in range(12) for part in (nn.Linear(16, 16), nn.ReLU())]
    x, y = torch.randn(64, 16), torch.arange(64) % 4
    task = Task(train=(x, y), test=(x, y))
    goal = {"threads": 1}
    tiny = mirabelle.compress(nn.Sequential(*small, nn.Linear(16, 4)), task, [quantize.Dynamic()], goal, out=tmp_path / "tiny")
    assert not read_report(tiny.folder).comparison.latency_ratio.slower
    assert quantized_layers(tiny) == []
    mixed = nn.Sequential(*small, nn.Linear(16, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 4))
    kept = mirabelle.compress(mixed, task, [quantize.Dynamic()], goal, out=tmp_path / "mixed")
    assert not read_report(kept.folder).comparison.latency_ratio.slower
    assert "26" in quantized_layers(kept)
    assert len(quantized_layers(kept)) < 10


@pytest.mark.parametrize("case", [(0.9, False, 1), (1.015, False, 3), (1.03, True, 3)])
def test_a_doubt_that_stays_speaks_against_the_step(
    mlp: nn.Module, blobs: Task, monkeypatch: pytest.MonkeyPatch, case: tuple[float, bool, int]
) -> None:
    ratio, slower, measurements = case
    asked: list[float] = []

    def measured(sessions: Mapping[str, Any], *_: Any, seconds: float, **__: Any) -> Any:
        asked.append(seconds)
        latency = Latency(1.0, 1.0, "onnxruntime", 1, 1)
        beside = Ratio(1 / ratio, 0.9 / ratio, 1.1 / ratio)  # of the model before to that after: an interval around 1
        return dict.fromkeys(sessions, latency), dict.fromkeys(sessions, beside)

    monkeypatch.setattr(never_slower, "time_all", measured)
    start, after = form_of(mlp, blobs), form_of(mlp, blobs)
    assert Guard(Goal(), blobs, start).compare(start, after)[3] is slower
    assert len(asked) == measurements
