"""A run's events without a run, and wandb's surroundings without what this machine has configured."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mirabelle.run.tracking import Tracker, tracker_for

Event = dict[str, Any]


def epoch(number: int, place: str = "1-prune.weights") -> Event:
    """The event at the end of an epoch of ten optimizer steps."""
    return {
        "time": 1e9 + number,
        "event": "epoch",
        "where": f"steps/{place}",
        "epoch": number,
        "epochs": 5,
        "step": 10 * number,
        "loss": 1 / number,
        "metric": 1 - 1 / (2 * number),
        "metric_name": "accuracy",
        "lr": 1e-3 / number,
        "seconds": 0.1,
        "seconds_left": 0.1,
    }


def profile(place: str = "1-prune.weights", step: str = "prune.Weights") -> Event:
    sizes = {"torch": 4000, "onnx": 3000, "onnx_gzip": None, "packed": 1000}
    metric = {"name": "accuracy", "value": 0.9, "low": 0.8, "high": 0.95, "n": 100}
    numbers = {
        "parameters": 1000,
        "nonzero_parameters": 100,
        "macs": 5000,
        "size_bytes": sizes,
        "metric": metric,
        "latency_ms": None,
    }
    return {"time": 2e9, "event": "profile", "where": f"steps/{place}", "step": step, "profile": numbers, "seconds": 1.0}


END = [
    {"time": 2e9, "event": "gate", "where": "", "name": "torch_onnx", "passed": True, "detail": "equal"},
    {"time": 2e9, "event": "end", "where": "", "met": False, "shortfalls": ["size"]},
]
RUN = [
    {"time": 1e9, "event": "decision", "where": "", "name": "threads", "value": 2},
    {"time": 1e9, "event": "begin", "where": "steps/1-prune.weights", "step": "prune.Weights"},
    *(epoch(number) for number in range(1, 6)),
    profile(),
    *END,
]
NAMES = {
    *(f"1-prune.weights/{name}" for name in ("train/loss", "validation/accuracy", "lr")),
    *(f"trail/{name}" for name in ("parameters", "nonzero_parameters", "macs", "accuracy")),
    *(f"trail/size_bytes/{form}" for form in ("torch", "onnx", "packed")),
    "gates/torch_onnx",
    "goal/met",
}  # fmt: skip


@dataclass
class Small:
    """A small run to be watched; `folder` is as it is when the first event comes."""

    folder: Path
    warnings: list[str] = field(default_factory=list)
    events: ClassVar[list[Event]] = RUN
    names: ClassVar[set[str]] = NAMES
    epoch = staticmethod(epoch)
    profile = staticmethod(profile)

    def tracker(self, name: str) -> Tracker:
        return tracker_for(name, self.folder, self.warnings.append)

    def happen(self, callback: Callable[[Event], None], *events: Event) -> None:
        """Let events happen as a run does: into the journal first, then to the callback."""
        for event in events:
            with (self.folder / "events.jsonl").open("a") as file:
                file.write(json.dumps(event) + "\n")
            callback(event)


@pytest.fixture
def small(tmp_path: Path) -> Small:
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text('schema = 1\n[model]\nfrom = "net.py:net"\n[[step]]\nuse = "prune.Weights"\n')
    return Small(folder)


@pytest.fixture
def bare_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no mode, no settings: what wandb finds where nobody has configured it."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
