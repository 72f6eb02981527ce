"""A run measures both models in every runtime that is installed, and says which one is fastest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

import mirabelle
from mirabelle import Task, quantize
from mirabelle.artifact.reading import runtime_of
from mirabelle.job import fastest
from mirabelle.report import read_report
from mirabelle.run.journal import read_events
from mirabelle.runtime.contest import Contest, Timing
from mirabelle.runtime.latency import Ratio
from mirabelle.runtime.runtime import Session, runtimes_present
from mirabelle.task.profile import Latency


def test_a_run_tells_the_times_in_every_runtime(
    mlp: nn.Module, blobs: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastest, "runtimes_present", runtimes_present)
    monkeypatch.setattr(fastest, "SECONDS", 0.05)
    mirabelle.compress(mlp, blobs, [quantize.Static()], {"threads": 1, "batch": 4}, out=tmp_path / "run")
    found = read_report(tmp_path / "run").contest
    assert found is not None
    places = [(one.form, one.latency.runtime, one.latency.threads, one.latency.batch) for one in found.timings]
    assert places == [(form, name, 1, 4) for name in runtimes_present() for form in (fastest.START, fastest.END)]
    assert found.refused == ()
    page = (tmp_path / "run/report.html").read_text()
    assert all(name in page for name in runtimes_present())


def test_files_may_name_their_inputs_differently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The input of a single linear layer is "input", that of the layer that replaces it "inputs"."""
    monkeypatch.setattr(fastest, "SECONDS", 0.05)
    monkeypatch.setattr(fastest, "runtimes_present", lambda: ["onnxruntime", "onnxruntime_extended"])
    data = torch.randn(40, 6), torch.randint(0, 2, (40,))
    task = Task(train=data, validation=data, test=data)
    mirabelle.compress(nn.Linear(6, 2), task, [quantize.Static()], {"threads": 1, "latency": "any"}, out=tmp_path / "run")
    found = read_report(tmp_path / "run").contest
    assert found is not None
    assert [one.latency.runtime for one in found.timings] == ["onnxruntime"] * 2 + ["onnxruntime_extended"] * 2


def test_a_goal_that_names_runtime_and_threads_leaves_no_choice(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    goal = {"threads": 1, "runtime": "onnxruntime_extended"}
    result = mirabelle.compress(mlp, blobs, [quantize.Static()], goal, out=tmp_path / "run")
    found = read_report(tmp_path / "run").contest
    assert found is not None
    assert [one.latency.runtime for one in found.timings] == ["onnxruntime_extended"] * 2
    assert result.profile.latency_ms is not None
    assert result.profile.latency_ms.runtime == "onnxruntime_extended"


def test_a_run_keeps_the_fastest_runtime_if_the_goal_asks(
    mlp: nn.Module, blobs: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def timings(sessions: Mapping[tuple[str, str, int], Session], *_feeds: object, **_rest: object) -> list[Timing]:
        asked.append([name for _, name, _ in sessions])
        return [timing(form, name, 0.5 if name == "onnxruntime_extended" else 1.0) for form, name, _ in sessions]

    monkeypatch.setattr(fastest, "runtimes_present", runtimes_present)
    monkeypatch.setattr(fastest, "timings_of", timings)
    result = mirabelle.compress(mlp, blobs, [quantize.Static()], {"threads": 1, "runtime": "fastest"}, out=tmp_path / "run")
    assert asked[0] == [name for name in runtimes_present() if name != "openvino_bf16"]
    assert result.profile.latency_ms is not None
    assert result.profile.latency_ms.runtime == "onnxruntime_extended"
    assert runtime_of(tmp_path / "run") == runtime_of(tmp_path / "run/model.mira") == "onnxruntime_extended"
    events = read_events(tmp_path / "run")
    assert [one["value"] for one in events if one.get("name") == "runtime"] == ["onnxruntime_extended"]


def test_a_runtime_that_is_slower_is_not_kept(
    mlp: nn.Module, blobs: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timings(sessions: Mapping[tuple[str, str, int], Session], *_feeds: object, **_rest: object) -> list[Timing]:
        return [timing(form, name, 1.0 if name == "onnxruntime" else 0.99) for form, name, _ in sessions]

    monkeypatch.setattr(fastest, "runtimes_present", runtimes_present)
    monkeypatch.setattr(fastest, "timings_of", timings)
    result = mirabelle.compress(mlp, blobs, [quantize.Static()], {"threads": 1, "runtime": "fastest"}, out=tmp_path / "run")
    assert result.profile.latency_ms is not None
    assert result.profile.latency_ms.runtime == "onnxruntime"


def timing(form: str, runtime: str, ms: float) -> Timing:
    return Timing(form, Latency(ms, ms, runtime, 1, 1), Ratio(ms, 0.95 * ms, 1.05 * ms))


def test_what_the_runtime_alone_gives_is_said() -> None:
    start, end = timing("start", "onnxruntime", 1.0), timing("end", "onnxruntime", 0.8)
    assert Contest((start, timing("end", "onnxruntime", 1.2))).in_words() == [
        "Nothing measured here is faster than start in ONNX Runtime with 1 thread."
    ]
    others = (timing("start", "openvino", 0.5), timing("end", "openvino", 0.25))
    assert Contest((start, end, *others)).in_words() == [
        "Fastest: end in OpenVINO with 1 thread, 4.00× faster (3.81 to 4.21) than start in ONNX Runtime with 1 thread.",
        "OpenVINO with 1 thread runs start unchanged 2.00× faster (1.90 to 2.11) than ONNX Runtime with 1 thread.",
    ]
