"""What takes seconds is told while it lasts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mirabelle.cli import display
from mirabelle.cli.display import Watcher
from mirabelle.run.run import Run


def test_a_part_is_told_if_it_lasts_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(display, "_LONG_SECONDS", 0.2)
    watcher = Watcher(quiet=False)
    run = Run(tmp_path, callbacks=[watcher], name="steps/1-quantize.dynamic")
    run.working("export")
    run.working("gates")
    deadline = time.monotonic() + 20
    told = ""
    while "gates" not in told and time.monotonic() < deadline:
        time.sleep(0.05)
        told += capsys.readouterr().err
    run.working("latency")
    watcher.close()
    time.sleep(0.5)
    assert told + capsys.readouterr().err == "steps/1-quantize.dynamic  gates\n"
    assert not (tmp_path / "events.jsonl").exists()


def test_rounds_and_idle_units_have_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watcher = Watcher(quiet=False)
    run = Run(tmp_path, callbacks=[watcher], name="steps/1-step")
    run.event("round", round=2, rounds=3, sparsity=0.8642791)
    run.event("idle units", cleared={"fc1.bias": 3, "fc2.weight": 5})
    watcher.close()
    assert capsys.readouterr().err == (
        "steps/1-step  round 2 of 3: 86.4% of the weights are pruned\n"
        "steps/1-step  units that do nothing lose what is left of them: fc1.bias, fc2.weight\n"
    )
