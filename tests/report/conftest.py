"""A report as plain data, without a run."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mirabelle.report import Report


def profile(metric: float, packed: int, *, name: str = "accuracy", latency: float | None = 0.04) -> dict[str, Any]:
    runs = {"median": latency, "p95": 0.06, "runtime": "onnxruntime", "threads": 2, "batch": 1}
    return {
        "parameters": 1000,
        "nonzero_parameters": 1000,
        "macs": 5000,
        "size_bytes": {"torch": 20_000, "onnx": 21_000, "onnx_gzip": 18_000, "packed": packed},
        "metric": {"name": name, "value": metric, "low": metric - 0.01, "high": metric + 0.005, "n": 400},
        "latency_ms": None if latency is None else runs,
    }


DATA: dict[str, Any] = {
    "schema": 1,
    "name": "digits",
    "recipe": {
        "schema": 1,
        "model": {"from": "mirabelle.sources.zoo:digits_cnn"},
        "goal": {"max_drop": "1pt"},
        "step": [{"use": "prune.Weights"}, {"use": "quantize.Static"}],
        "decisions": {"threads": 2},
    },
    "environment": {"python": "3.11.7", "processor": "Abacus 9", "cores": 2, "threads": 2, "versions": {"torch": "2.13.0"}},
    "goal": {"asked": {"max_drop": "1pt"}, "met": True, "shortfalls": []},
    "start": profile(0.98, 18_000),
    "end": profile(0.975, 2_000, latency=0.025),
    "comparison": {
        "p_value": 0.5,
        "difference": {"value": -0.005, "low": -0.014, "high": 0.004},
        "latency_ratio": {"median": 0.617, "low": 0.588, "high": 0.645},
    },
    "trail": [
        {"step": "baseline", "profile": profile(0.985, 18_000, latency=None), "seconds": 3.1},
        {"step": "prune.Weights", "profile": profile(0.98, 5_000, latency=None), "seconds": 2.0},
        {"step": "quantize.Static", "profile": profile(0.975, 2_000, latency=None), "seconds": 0.1},
    ],
    "layers": [
        {
            "name": name,
            "kind": "Conv",
            "shape": [4, 1, 3, 3],
            "parameters": 40,
            "macs": macs,
            "sparsity": 0.5,
            "size_bytes": size,
        }
        for name, macs, size in (("conv1", 1440, 300), ("fc2", None, 900))
    ],
    "gates": {
        "torch_onnx": {"passed": True, "worst": 1e-7, "detail": "400 samples agree"},
        "saved_loaded": {"passed": True, "worst": None, "detail": "equal"},
    },
    "curves": [
        {
            "where": f"steps/{k}-x",
            "step": step,
            "epochs": [
                {"epoch": e, "loss": 2.0 / e**3, "metric": 0.98 - 0.3 / e, "lr": None if k else 0.1}
                for e in range(1, length + 1)
            ],
        }
        for k, (step, length) in enumerate((("baseline", 12), ("prune.Weights", 8), ("distill.Student", 1)))
    ],
}


@pytest.fixture
def data() -> dict[str, Any]:
    return copy.deepcopy(DATA)


@pytest.fixture
def report(data: dict[str, Any]) -> Report:
    return Report.from_data(data)


@pytest.fixture
def ended(report: Report, tmp_path: Path) -> Path:
    """The folder of a run that has ended, as far as a report needs it."""
    folder = tmp_path / "ended"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report.to_data(), indent=2) + "\n")
    return folder
